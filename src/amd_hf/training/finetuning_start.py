"""Where a fine-tuning run starts: random weights, AMD, MoCo or ResNet checkpoints; what it trains.

Key names of a ResNet of transformers and of the appearance pathway (stage s, block b, i = 1, 2, 3):

    embedder.embedder.convolution          backbone.stem_conv
    embedder.embedder.normalization        backbone.stem_norm
    encoder.stages.s.layers.b.layer.i-1.*  backbone.stages.s.b.conv<i>, norm<i>
    encoder.stages.s.layers.b.shortcut.*   backbone.stages.s.b.shortcut.0, shortcut.1
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ResNetConfig

from amd_hf.configuration_amd import AMDConfig
from amd_hf.modeling_amd import AMDForSemanticSegmentation
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.setup import build_config

logger = logging.getLogger(__name__)

SEMANTIC_CLASS = AMDForSemanticSegmentation.__name__
RESNET_KEYS = (
    (r"^embedder\.embedder\.convolution\.", "stem_conv."),
    (r"^embedder\.embedder\.normalization\.", "stem_norm."),
    (
        r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.",
        r"stages.\1.\2.shortcut.0.",
    ),
    (
        r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.",
        r"stages.\1.\2.shortcut.1.",
    ),
)
RESNET_LAYER = re.compile(
    r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.(.+)$"
)


def build_semantic_model(
    args: FinetuningArguments, labels: Sequence[str]
) -> AMDForSemanticSegmentation:
    """The model at the start of a run; new weights follow from the seed.

    Args:
        args: The options of the run.
        labels: Names of the classes.

    Returns:
        The model, with `id2label` and `label2id` in its configuration.

    Raises:
        ValueError: If the checkpoint cannot be used, or its classes are others.
    """
    torch.manual_seed(args.seed)
    if args.model_name_or_path is None:
        # The engine's arguments have the two fields that matter here.
        config = build_config(cast(Any, args))
        model = AMDForSemanticSegmentation(_with_labels(config, labels))
        if args.mode != "full":
            logger.warning("Mode %s trains on top of a random, fixed backbone.", args.mode)
    else:
        model = _load(args, args.model_name_or_path, labels)
    if args.reset_head:
        _reset_head(model, args.seed)
    return model


def _with_labels(config: AMDConfig, labels: Sequence[str]) -> AMDConfig:
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return config


def _load(
    args: FinetuningArguments, name: str, labels: Sequence[str]
) -> AMDForSemanticSegmentation:
    try:
        config = AutoConfig.from_pretrained(name, token=args.hub_token)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model_name_or_path` {name!r} cannot be loaded: {error}") from error
    if isinstance(config, ResNetConfig):
        return load_resnet_start(name, labels, token=args.hub_token)
    if not isinstance(config, AMDConfig):
        raise ValueError(
            f"`model_name_or_path` must be an AMD or a ResNet checkpoint, got {name!r} of the kind "
            f"`{config.model_type}`."
        )
    has_classifier = SEMANTIC_CLASS in (config.architectures or [])
    if has_classifier and not args.ignore_mismatched_sizes:
        _check_labels(config, name, labels)
    model = AMDForSemanticSegmentation.from_pretrained(
        name,
        config=_with_labels(config, labels),
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        token=args.hub_token,
    )
    return model


def _check_labels(config: AMDConfig, name: str, labels: Sequence[str]) -> None:
    if config.num_labels != len(labels):
        raise ValueError(
            f"`model_name_or_path` {name!r} was fine-tuned for {config.num_labels} classes, the "
            f"data set has {len(labels)}; pass --ignore_mismatched_sizes to start with a new "
            "classifier."
        )
    known = list(dict(config.id2label or {}).values())
    if known != list(labels):
        logger.warning("The classes of %s have other names: %s.", name, ", ".join(map(str, known)))


def _reset_head(model: AMDForSemanticSegmentation, seed: int) -> None:
    """Fresh weights of the dilated head and the classifier, as in a new model."""
    torch.manual_seed(seed)
    fresh = AMDForSemanticSegmentation(model.config)
    model.appearance.head.load_state_dict(fresh.appearance.head.state_dict())
    model.classifier.load_state_dict(fresh.classifier.state_dict())


def load_resnet_start(
    name: str, labels: Sequence[str], token: str | None = None
) -> AMDForSemanticSegmentation:
    """A model whose backbone is a ResNet with bottlenecks, such as `microsoft/resnet-50`.

    The strides and dilations are those of AMD (output stride 8); head and classifier are new.

    Args:
        name: Hub id or folder of any ResNet of transformers.
        labels: Names of the classes.
        token: Token for private repositories.

    Raises:
        ValueError: If it is a ResNet without bottlenecks, or its widths do not double.
    """
    resnet = AutoModel.from_pretrained(name, token=token)
    config = _with_labels(amd_config_of_resnet(resnet.config), labels)
    model = AMDForSemanticSegmentation(config)
    backbone = model.appearance.backbone
    backbone.load_state_dict(convert_resnet_keys(resnet.state_dict()))
    return model


def amd_config_of_resnet(resnet: ResNetConfig) -> AMDConfig:
    """The configuration whose backbone has the weights of a ResNet with bottlenecks.

    Raises:
        ValueError: If there is none.
    """
    hidden_sizes, depths = list(resnet.hidden_sizes or []), list(resnet.depths or [])
    widths = [hidden // 4 for hidden in hidden_sizes]
    doubles = all(width == widths[0] * 2**stage for stage, width in enumerate(widths))
    if resnet.layer_type != "bottleneck" or not doubles or resnet.downsample_in_bottleneck:
        raise ValueError(
            "A ResNet start must have bottlenecks with the stride in the 3x3 convolution and "
            f"widths that double, got layer_type {resnet.layer_type!r} and hidden sizes "
            f"{hidden_sizes}; microsoft/resnet-50 is of the right kind."
        )
    stages = len(depths)
    return AMDConfig(
        stem_channels=resnet.embedding_size,
        base_channels=widths[0],
        block_counts=depths,
        block_strides=[1, 2, *[1] * (stages - 2)][:stages],
        block_dilations=[*[1] * (stages - 1), 2],
    )


def convert_resnet_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `ResNetModel` under the names of `AMDBackbone`.

    Raises:
        ValueError: If a name is not that of a ResNet; nothing is left out silently.
    """
    converted = {}
    for name, value in state.items():
        if (match := RESNET_LAYER.match(name)) is not None:
            stage, block, layer, kind, rest = match.groups()
            part = "conv" if kind == "convolution" else "norm"
            converted[f"stages.{stage}.{block}.{part}{int(layer) + 1}.{rest}"] = value
            continue
        for pattern, target in RESNET_KEYS:
            if re.match(pattern, name):
                converted[re.sub(pattern, target, name)] = value
                break
        else:
            raise ValueError(f"`state` must be that of a ResNetModel, got the entry {name!r}.")
    return converted


def freeze(model: AMDForSemanticSegmentation, mode: str) -> list[nn.Module]:
    """Fixes what a mode does not train.

    Args:
        model: The model.
        mode: `full`, `frozen` (backbone fixed) or `head` (all but the classifier fixed).

    Returns:
        The fixed parts. Keep them in eval mode: their batch statistics are fixed too.
    """
    frozen: dict[str, list[nn.Module]] = {
        "full": [],
        "frozen": [model.appearance.backbone],
        "head": [model.appearance.backbone, model.appearance.head],
    }
    for module in frozen[mode]:
        module.requires_grad_(False)
    return frozen[mode]


def build_semantic_optimizer(
    args: FinetuningArguments, model: AMDForSemanticSegmentation
) -> torch.optim.Optimizer:
    """SGD with momentum as published, or AdamW; head and classifier may learn faster.

    Source: AMD paper, learning rate 0.01; momentum and weight decay as in MMSegmentation.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("appearance.backbone.")].append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": groups[True]},
        {"params": groups[False], "lr": args.learning_rate * args.head_lr_scale},
    ]
    settings: dict[str, Any] = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    return torch.optim.SGD(parameters, momentum=args.momentum, **settings)
