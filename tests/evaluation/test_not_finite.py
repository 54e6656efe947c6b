"""A network whose output is NaN: validation during training says so, without waiting for the device case by case."""

import pytest
import torch

from segkit.evaluation.scorer import Scorer
from segkit.evaluation.scoring import Scoring
from segkit.inference.predictor import Predictor
from segkit.training.loop import fit
from segkit.training.run_folder import Run
from segkit.utils.errors import DataError

from support.experiments import CPU, LABELS, QUIET, make_experiment
from support.synchronisation import NoWaiting


class NotFinite(torch.nn.Module):
    def forward(self, image):
        logits = image.repeat(1, 3, 1, 1)
        logits[:, 1, :2, 3] = float("nan")
        return logits


def test_the_case_is_named_at_the_end_and_nothing_waits_for_the_device_before():
    experiment = make_experiment(1)
    predictor = Predictor(NotFinite().eval(), LABELS, CPU, 4)
    scorer = Scorer(3, LABELS, Scoring(), CPU)
    for number in range(3):
        sample = experiment.validation[number]
        with NoWaiting():
            prediction = predictor.predict(sample["image"], sample["mask"].shape)
            arguments = sample["case"], sample["group"], prediction.mask, sample["mask"][None], (1.0, 1.0)
            scorer.add(*arguments, nonfinite=prediction.nonfinite if number else None)
    with pytest.raises(DataError, match=r"case validation_0001: expected finite logits .* at 2 pixels.*optimizer.lr"):
        scorer.result()


def test_validation_during_training_ends_it_with_the_case(tmp_path):
    experiment = make_experiment(4)
    experiment.predictor = lambda _model: Predictor(NotFinite(), LABELS, CPU, 4)
    with pytest.raises(DataError, match="case validation_0000: expected finite logits"):
        fit(experiment, Run(tmp_path / "run"), console=QUIET)
