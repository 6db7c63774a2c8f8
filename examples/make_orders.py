"""Print an example table as CSV: 4,000 orders of the last 120 days, and whether each order came late.

python examples/make_orders.py > orders.csv
"""

import csv
import random
import sys
from datetime import UTC, datetime, timedelta

ORDERS, DAYS = 4_000, 120
COURIERS = {"Ada": -0.6, "Bo": 0.0, "Cleo": 0.2, "Dov": 1.1}
WEATHER = {"dry": -0.4, "rain": 0.6, "snow": 1.6}
NOTES = ["", "", "", "ring twice", "leave at the door", "call before delivery"]


def main() -> None:
    draw = random.Random(7)  # noqa: S311  (not a secret)
    end = datetime.now(UTC).replace(tzinfo=None, second=0, microsecond=0)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["Order No", "Ordered at", "Km", "Items", "Courier", "Weather", "Note", "Phone", "Outcome"])
    for number in range(ORDERS):
        ordered_at = end - timedelta(minutes=draw.uniform(0, DAYS * 24 * 60))
        km, items = round(draw.expovariate(1 / 6), 1), draw.randint(1, 12)
        courier, weather, note = draw.choice(list(COURIERS)), draw.choice(list(WEATHER)), draw.choice(NOTES)
        odds = -3.4 + 0.22 * km + 0.08 * items + COURIERS[courier] + WEATHER[weather] + 1.5 * ("call" in note)
        is_late = draw.random() < 1 / (1 + 2.718281828**-odds)
        phone = f"555-01{draw.randint(0, 99):02d}"
        km_text = "" if draw.random() < 0.03 else km
        time_text, outcome = f"{ordered_at:%Y-%m-%d %H:%M}", "late" if is_late else "on time"
        table.writerow([f"A{number:05d}", time_text, km_text, items, courier, weather, note, phone, outcome])


if __name__ == "__main__":
    main()
