"""`python examples/make_orders.py > orders.csv`: print an example table of 4,000 orders as CSV.

The orders are from the last 120 days. The last column says whether an order came late.
"""

import csv
import random
import sys
from datetime import UTC, datetime, timedelta

ORDERS, DAYS = 4_000, 120
# How much a courier and the weather add to the log-odds of a late order.
COURIERS = {"Ada": -0.6, "Bo": 0.0, "Cleo": 0.2, "Dov": 1.1}
WEATHER = {"dry": -0.4, "rain": 0.6, "snow": 1.6}
NOTES = ["", "", "", "ring twice", "leave at the door", "call before delivery"]


def main() -> None:
    generator = random.Random(7)  # noqa: S311 - not for secrets
    end = datetime.now(UTC).replace(tzinfo=None, second=0, microsecond=0)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["Order No", "Ordered at", "Km", "Items", "Courier", "Weather", "Note", "Phone", "Outcome"])
    for number in range(ORDERS):
        ordered_at = end - timedelta(minutes=generator.uniform(0, DAYS * 24 * 60))
        km, items = round(generator.expovariate(1 / 6), 1), generator.randint(1, 12)
        courier, weather, note = (
            generator.choice(list(COURIERS)),
            generator.choice(list(WEATHER)),
            generator.choice(NOTES),
        )
        log_odds = -3.4 + 0.22 * km + 0.08 * items + COURIERS[courier] + WEATHER[weather] + 1.5 * ("call" in note)
        is_late = generator.random() < 1 / (1 + 2.718281828**-log_odds)
        phone = f"555-01{generator.randint(0, 99):02d}"
        km_text = "" if generator.random() < 0.03 else km
        time_text, outcome = f"{ordered_at:%Y-%m-%d %H:%M}", "late" if is_late else "on time"
        writer.writerow([f"A{number:05d}", time_text, km_text, items, courier, weather, note, phone, outcome])


if __name__ == "__main__":
    main()
