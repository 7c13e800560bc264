"""Evaluation of samples: feature extractors, metrics, protocols and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.evaluation.evaluate import ReportOptions as ReportOptions
    from dinit.evaluation.evaluate import evaluate_images as evaluate_images
    from dinit.evaluation.features.base import EXTRACTORS as EXTRACTORS
    from dinit.evaluation.features.base import Extracted as Extracted
    from dinit.evaluation.features.base import Extractor as Extractor
    from dinit.evaluation.features.digits import DigitsExtractor as DigitsExtractor
    from dinit.evaluation.features.digits_classifier import DigitsClassifier as DigitsClassifier
    from dinit.evaluation.features.digits_classifier import classify as classify
    from dinit.evaluation.features.digits_classifier import load_classifier as load_classifier
    from dinit.evaluation.features.digits_classifier import train_classifier as train_classifier
    from dinit.evaluation.features.dinov2 import DinoV2 as DinoV2
    from dinit.evaluation.features.glyphs import GlyphsExtractor as GlyphsExtractor
    from dinit.evaluation.features.glyphs_classifier import GlyphsClassifier as GlyphsClassifier
    from dinit.evaluation.features.glyphs_classifier import load_glyphs_classifier as load_glyphs_classifier
    from dinit.evaluation.features.glyphs_classifier import train_glyphs_classifier as train_glyphs_classifier
    from dinit.evaluation.features.image_classifier import ImageClassifier as ImageClassifier
    from dinit.evaluation.features.inception import CleanInception as CleanInception
    from dinit.evaluation.features.inception import Inception as Inception
    from dinit.evaluation.features.nothing import NoFeatures as NoFeatures
    from dinit.evaluation.features.trained_classifier import TrainedExtractor as TrainedExtractor
    from dinit.evaluation.metrics.base import DEFAULT_METRICS as DEFAULT_METRICS
    from dinit.evaluation.metrics.base import METRICS as METRICS
    from dinit.evaluation.metrics.embedding_distances import Clip as Clip
    from dinit.evaluation.metrics.reconstruction import psnr as psnr
    from dinit.evaluation.metrics.reconstruction import ssim as ssim
    from dinit.evaluation.posterior_metrics import Calibration as Calibration
    from dinit.evaluation.posterior_metrics import PosteriorScores as PosteriorScores
    from dinit.evaluation.posterior_metrics import posterior_calibration as posterior_calibration
    from dinit.evaluation.posterior_metrics import posterior_scores as posterior_scores
    from dinit.evaluation.protocols import PROTOCOLS as PROTOCOLS
    from dinit.evaluation.protocols import NamedProtocol as NamedProtocol
    from dinit.evaluation.reference import Reference as Reference
    from dinit.evaluation.reference import load_reference as load_reference
    from dinit.evaluation.reports.page import write_page as write_page
    from dinit.evaluation.reports.report import Protocol as Protocol
    from dinit.evaluation.reports.report import Report as Report
    from dinit.evaluation.reports.report import Row as Row
    from dinit.evaluation.reports.report import compare as compare
    from dinit.evaluation.samples import Samples as Samples
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
