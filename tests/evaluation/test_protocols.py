"""Named protocols fix what they say, and figures of two are never compared."""

from __future__ import annotations

import pytest
import torch
from made_features import case, featured

from dinit.data.digits import Digits
from dinit.evaluation import EXTRACTORS, compare, evaluate_images
from dinit.evaluation.metrics.base import METRICS, Settings
from dinit.evaluation.protocols import PROTOCOLS, choose_protocol, named_protocol
from dinit.pipelines.evaluate import draw_labels


def test_every_protocol_names_an_extractor_and_its_own_resize() -> None:
    assert {"adm", "clean", "torch-fidelity", "digits", "glyphs"} <= set(PROTOCOLS)
    for protocol in PROTOCOLS.values():
        assert protocol.features in EXTRACTORS
    resizes = {name: EXTRACTORS[PROTOCOLS[name].features].resize for name in ("adm", "clean")}
    assert "TensorFlow 1" in resizes["adm"]
    assert "antialiasing" in resizes["clean"]


def test_the_protocol_follows_from_name_features_or_data() -> None:
    assert choose_protocol("adm", None, "digits-classifier").name == "adm"
    assert choose_protocol(None, "inception-v3", "digits-classifier").name == "torch-fidelity"
    assert choose_protocol(None, "inception-v3-clean", None).name == "clean"
    assert choose_protocol(None, None, "glyphs-classifier").name == "glyphs"
    assert choose_protocol(None, None, None).name == "torch-fidelity"
    assert choose_protocol(None, "mine", "digits-classifier").name == "custom"
    with pytest.raises(ValueError, match="leave one of the two out"):
        choose_protocol("clean", "inception-v3", None)
    with pytest.raises(ValueError, match="did you mean 'clean'"):
        named_protocol("clen")


def test_adm_splits_the_inception_score_in_order() -> None:
    adm, usual = PROTOCOLS["adm"], PROTOCOLS["torch-fidelity"]
    assert adm.settings([50_000, 10_000], 50_000, 0) == Settings(1000, 100, 10, 3, 0, isc_shuffle=False)
    assert usual.settings([50_000, 10_000], 50_000, 0) == Settings(1000, 100, 10, 3, 0, isc_shuffle=True)
    assert adm.settings([12_000], 12_000, 0).isc_splits == 3
    # two splits, each certain of one class: 1 in order, and 2 when shuffled
    logits = torch.zeros(400, 2).index_fill(0, torch.arange(400), 0.0)
    logits[:200, 0], logits[200:, 1] = 90.0, 90.0
    samples = featured(logits.numpy(), logits=logits.double().numpy())
    for shuffle, score in ((False, 1.0), (True, 2.0)):
        both = case(samples, samples)
        settings = Settings(20, 1, 2, 3, 0, isc_shuffle=shuffle)
        found = METRICS["inception-score"](type(both)(samples, samples, both.extractor, settings))
        assert found["inception_score"] == pytest.approx(score, abs=0.02)


def test_adm_draws_classes_at_random_and_others_as_many_of_each() -> None:
    random, balanced = (draw_labels(PROTOCOLS[name], 4000, 10, 3) for name in ("adm", "clean"))
    assert balanced is not None
    assert random is not None
    assert torch.bincount(balanced).tolist() == [400] * 10
    counts = torch.bincount(random, minlength=10).double()
    assert 10 < counts.std() < 40  # √(4000 · 0.1 · 0.9) = 19
    assert torch.equal(random, draw_labels(PROTOCOLS["adm"], 4000, 10, 3))
    assert not torch.equal(random, draw_labels(PROTOCOLS["adm"], 4000, 10, 4))
    assert draw_labels(PROTOCOLS["adm"], 10, 0, 3) is None


def test_figures_of_two_protocols_are_not_compared() -> None:
    images = Digits("train").uint8_images(list(range(60)))
    digits = evaluate_images(images, metrics=["fid"], cuda=False)
    other = evaluate_images(images, metrics=["fid"], features=lambda x: x.flatten(1).float(), cuda=False)
    assert digits.protocol.name == "digits"
    with pytest.raises(ValueError, match="name: 'digits' against 'custom'"):
        compare(digits, other)
    assert compare(digits, digits) == {"fid": 0.0}
