"""The model that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nest_ssl.config.schema import BEST_RQ, NEST, WAV2VEC_BERT, class_of
from nest_ssl.model.best_rq import BestRqModel
from nest_ssl.model.nest import NestModel
from nest_ssl.model.wav2vec_bert import Wav2VecBertModel
from nest_ssl.releases import NEWEST

MODELS: dict[str, type[NestModel | Wav2VecBertModel]] = {
    NEST: NestModel,
    BEST_RQ: BestRqModel,
    WAV2VEC_BERT: Wav2VecBertModel,
}


def model_of(cfg: Mapping[str, Any], generation: str = NEWEST) -> NestModel | Wav2VecBertModel:
    """A model of the class that `target` names, without its training; arguments as `NestModel` has them.

    Raises:
        UserError: another class, or settings that do not fit.
    """
    return MODELS[class_of(cfg.get("target"))](cfg, generation)
