"""A baseline: a service as MLOps courses teach it. Nothing in it was made slower for the comparison.

The service is a synchronous BentoML service with BentoML's defaults. Each request creates a DataFrame, scales and
encodes the features, calls the model twice (prediction and probabilities), and commits a row with the ORM.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import bentoml
import joblib
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sqlalchemy import JSON, DateTime, Float, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class LoggedPrediction(Base):
    __tablename__ = "course_prediction"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    customer_id: Mapped[str] = mapped_column(String(64))
    features: Mapped[dict[str, Any]] = mapped_column(JSON)
    prediction: Mapped[str] = mapped_column(String(32))
    confidence: Mapped[float] = mapped_column(Float)
    created_at: Mapped[datetime] = mapped_column(DateTime)


def train(
    frame: pd.DataFrame, *, numeric: list[str], categorical: list[str], label: str, folder: Path, trees: int
) -> None:
    """Fit scaler, encoder and model on `frame`, and write them to a file in `folder`.

    numeric, categorical: the columns of the features.
    label: the column of the label.
    """
    scaler = StandardScaler().fit(frame[numeric])
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(frame[categorical].astype(str))
    prepared = np.hstack([scaler.transform(frame[numeric]), encoder.transform(frame[categorical].astype(str))])
    model = CatBoostClassifier(iterations=trees, depth=6, random_seed=1, verbose=False, allow_writing_files=False)
    model.fit(prepared, frame[label])
    columns = {"numeric": numeric, "categorical": categorical}
    joblib.dump({"scaler": scaler, "encoder": encoder, "model": model, "columns": columns}, folder / "course.joblib")


if "COURSE_FOLDER" in os.environ:  # the benchmark imports this module without the variable, to call `train`

    @bentoml.service(workers=int(os.environ["COURSE_WORKERS"]))  # 1 is BentoML's default
    class CourseService:
        def __init__(self) -> None:
            parts = joblib.load(Path(os.environ["COURSE_FOLDER"]) / "course.joblib")
            self.scaler, self.encoder, self.model = parts["scaler"], parts["encoder"], parts["model"]
            self.numeric, self.categorical = parts["columns"]["numeric"], parts["columns"]["categorical"]
            self.engine = create_engine(os.environ["COURSE_DATABASE"])

        @bentoml.api  # type: ignore[untyped-decorator]
        def predict(self, data: dict[str, Any]) -> dict[str, Any]:
            frame = pd.DataFrame([data])
            scaled = self.scaler.transform(frame[self.numeric].astype(float))
            prepared = np.hstack([scaled, self.encoder.transform(frame[self.categorical].astype(str))])
            prediction = str(self.model.predict(prepared).ravel()[0])
            confidence = float(self.model.predict_proba(prepared).max())
            with Session(self.engine) as session:
                session.add(
                    LoggedPrediction(
                        customer_id=data["customer_id"],
                        features=data,
                        prediction=prediction,
                        confidence=confidence,
                        created_at=datetime.now(),  # noqa: DTZ005 - courses write it like this
                    )
                )
                session.commit()
            return {"prediction": prediction, "confidence": confidence}
