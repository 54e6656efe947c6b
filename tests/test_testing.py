"""The checks for losses of one's own: they pass for right losses and name what is wrong with others."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.losses import LOSSES
from segkit.losses.custom import masked_mean, valid_logits
from segkit.testing import check_loss

from support.brier_plugin import Brier

# the gradient of the histogram form is that of the sorted one, which its value approximates: finite differences see it
OPTIONS = {"lovasz_softmax": {"mode": "exact"}, "lovasz_hinge": {"mode": "exact"}, "cldice": {"iterations": 2}}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_own_losses_keep_the_contract(name):
    assert check_loss(name, **OPTIONS.get(name, {}))


def test_a_loss_in_fifteen_lines_keeps_it():
    assert check_loss(Brier) == ["multiclass", "binary", "multilabel"]


def test_the_value_of_that_loss():
    """Against torch on the valid pixels alone."""
    from segkit.labels import Labels

    labels = Labels(["background", "a", "b"], ignore_index=255)
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 3, 5, 6, generator=generator), torch.randint(0, 3, (2, 5, 6), generator=generator)
    mask[0, :2] = 255
    valid = mask != 255
    probabilities = logits.softmax(1).movedim(1, -1)[valid]
    expected = F.mse_loss(probabilities, F.one_hot(mask[valid], 3).float())
    torch.testing.assert_close(Brier(labels=labels)(logits, labels.target(mask)), expected)


class Base(nn.Module):
    def __init__(self, *, labels):
        super().__init__()
        self.labels = labels

    def error(self, logits, target):
        p = self.labels.probabilities(logits)
        return (p - self.labels.onehot(target).to(p.dtype)) ** 2


class CountsIgnored(Base):
    def forward(self, logits, target):
        return self.error(logits, target).mean()


class Detached(Base):
    def forward(self, logits, target):
        logits = valid_logits(logits, target)
        return masked_mean(self.error(logits, target), target) + 0.1 * logits.detach().square().mean()


class Reversed(Base):
    def forward(self, logits, target):
        return -masked_mean(self.error(valid_logits(logits, target), target), target)


class ReadsBack(Base):
    def forward(self, logits, target):
        value = masked_mean(self.error(valid_logits(logits, target), target), target)
        return value if value.item() >= 0 else -value


class HalfPrecision(Base):
    def forward(self, logits, target):
        logits = logits if target.valid is None else torch.where(target.valid_channels, logits, 0)
        return masked_mean(self.error(logits, target), target)


class Crashes(Base):
    def forward(self, *_):
        raise KeyError("nothing")


@pytest.mark.parametrize(
    ("loss", "property_"),
    [
        (CountsIgnored, "under ignored pixels"),
        (Detached, "finite differences"),
        (Reversed, "right prediction"),
        (ReadsBack, "meta device"),
        (HalfPrecision, "bfloat16|float16"),
        (Crashes, "raises KeyError"),
    ],
)
def test_what_is_wrong_is_named(loss, property_):
    with pytest.raises(AssertionError, match=property_):
        check_loss(loss)


def test_a_loss_for_no_mode():
    class Refuses(Base):
        def __init__(self, **_):
            raise ValueError("not for anything")

    with pytest.raises(ValueError, match=r"none of the modes .*not for anything"):
        check_loss(Refuses)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_masked_mean_is_that_of_the_valid_pixels(dims):
    from segkit.labels import Target

    generator = torch.Generator().manual_seed(1)
    shape = (2, *(4,) * dims)
    values, weight = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    valid = torch.rand(shape, generator=generator) > 0.3
    index = torch.zeros(shape, dtype=torch.uint8)
    torch.testing.assert_close(masked_mean(values, Target(index)), values.mean())
    torch.testing.assert_close(masked_mean(values, Target(index, valid=valid)), values[valid].mean())
    weighted = masked_mean(values, Target(index, valid=valid, pixel_weight=weight))
    torch.testing.assert_close(weighted, (values * weight)[valid].sum() / weight[valid].sum())
    unknown = torch.where(valid, weight, torch.nan)
    torch.testing.assert_close(masked_mean(values, Target(index, valid=valid, pixel_weight=unknown)), weighted)
    per_class = torch.stack([values, values + 1], 1)
    torch.testing.assert_close(masked_mean(per_class, Target(index, valid=valid)), values[valid].mean() + 0.5)
    assert masked_mean(values, Target(index, valid=torch.zeros_like(valid))) == 0
