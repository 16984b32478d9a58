"""The recipe's sections ``[data]``, ``[network]``, ``[relu]``, ``[train]`` and ``[bit_true]``: what to train, and how.

Defaults are the published DSR settings (qymeng94/DSR ``README.md`` and ``cifar/main_single_gpu.py``), scaled where
a small data set needs it, each such place says so; with ``network.method = "tssl-bp"`` those of that method's official
code. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# qymeng94/DSR README: `--Vth 6 --alpha 0.5 --Vth_bound 0.01` for IF; its argparse defaults are the LIF settings.
_DSR = {
    "if": {"threshold": 6.0, "alpha": 0.5, "threshold_bound": 0.01},
    "lif": {"threshold": 0.3, "alpha": 0.3, "threshold_bound": 0.0005},
}


class Section(BaseModel):
    """Part of a recipe: unknown keys are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


_AtLeast1: TypeAlias = Annotated[int, Field(ge=1)]
_AtLeast0: TypeAlias = Annotated[int, Field(ge=0)]
Size: TypeAlias = Annotated[tuple[_AtLeast1, _AtLeast1], BeforeValidator(_pair)]
Padding: TypeAlias = Annotated[tuple[_AtLeast0, _AtLeast0], BeforeValidator(_pair)]


class ConvLayer(Section):
    """A convolution, batch normalization and a neuron layer."""

    type: Literal["conv"] = "conv"
    channels: int = Field(ge=1, description="output channels")
    kernel: Size = Field(default=(3, 3), description="size of the kernel: one number, or [y, x]")
    stride: Size = Field(default=(1, 1), description="one number, or [y, x]")
    padding: Padding = Field(
        default=(0, 0), description="rows and columns of zeros on every side: one number, or [y, x]"
    )
    dilation: Size = Field(default=(1, 1), description="one number, or [y, x]")
    groups: int = Field(default=1, ge=1, description="channel groups; divides input and output channels")
    bias: bool | None = Field(
        default=None, description="trained bias; default: only where there is no batch normalization"
    )
    batch_norm: bool | None = Field(
        default=None, description="batch normalization between the weights and the neurons; default: with DSR"
    )
    initial_scale: float = Field(default=1.0, gt=0, description="factor on the initial weights")
    neurons: bool = Field(default=True, description="false where what follows, a block or neurons, begins with its own")


class BlockLayer(Section):
    """A pre-activation residual block of two 3x3 convolutions, as in DSR; its neurons come before each of them.

    ``x = neurons(norm(input))``; ``conv(neurons(norm(conv(x)))) + shortcut(x)``: the shortcut carries spikes. It is
    the identity, or a 1x1 convolution where the shape changes. What follows adds the next neurons.
    """

    type: Literal["block"] = "block"
    channels: int = Field(ge=1, description="output channels")
    stride: Size = Field(default=(1, 1), description="of the first convolution and the shortcut: one number, or [y, x]")
    bias: bool = Field(default=True, description="trained biases of the convolutions, the shortcut's too")
    shortcut_norm: bool = Field(default=False, description="batch normalization after the shortcut's convolution")


class NeuronLayer(Section):
    """Batch normalization and a neuron layer without weights of their own: the end of a chain of blocks."""

    type: Literal["neurons"] = "neurons"
    batch_norm: bool | None = Field(
        default=None, description="batch normalization before the neurons; default: with DSR"
    )


class PoolLayer(Section):
    """Average pooling; without neurons it folds into the next weights."""

    type: Literal["pool"] = "pool"
    size: Size | Literal["all"] = Field(
        default=(2, 2),
        description='one number, or [y, x]; rows and columns left over are dropped; "all": the whole map',
    )
    stride: Size | None = Field(default=None, description="one number, or [y, x]; default: the size")
    padding: Padding = Field(
        default=(0, 0), description="rows and columns of zeros on every side, which count in the mean"
    )
    neurons: bool = Field(default=False, description="a neuron layer follows the pooling")
    gain: float | None = Field(
        default=None, gt=0, description="so many times the sum of a window instead of its mean; 1.1 with TSSL-BP"
    )


class AdaptivePoolLayer(Section):
    """Average pooling to a given size of map; a smaller map is repeated. Only right before the linear layers."""

    type: Literal["adaptive_pool"] = "adaptive_pool"
    size: Size = Field(description="of the resulting map: one number, or [y, x]")


class DropoutLayer(Section):
    """Dropout, in training only."""

    type: Literal["dropout"] = "dropout"
    p: float = Field(default=0.1, ge=0, lt=1, description="probability of zeroing a value")


class LinearLayer(Section):
    """A dense layer, batch normalization and a neuron layer."""

    type: Literal["linear"] = "linear"
    features: int | None = Field(
        default=None, ge=1, description="number of neurons; may be left out in the last layer: one for each class"
    )
    bias: bool | None = Field(
        default=None, description="trained bias; default: only where there is no batch normalization"
    )
    batch_norm: bool | None = Field(
        default=None, description="batch normalization between the weights and the neurons; default: with DSR"
    )
    initial_scale: float = Field(default=1.0, gt=0, description="factor on the initial weights")
    initial_std: float | None = Field(
        default=None, gt=0, description="spread of the normal initial weights; default: torch's uniform ones"
    )


AnyLayer: TypeAlias = ConvLayer | BlockLayer | NeuronLayer | PoolLayer | AdaptivePoolLayer | DropoutLayer | LinearLayer
Layer: TypeAlias = Annotated[AnyLayer, Field(discriminator="type")]
Architecture: TypeAlias = Literal[
    "preact-resnet18",
    "preact-resnet34",
    "preact-resnet20",
    "preact-resnet32",
    "preact-resnet44",
    "preact-resnet56",
    "preact-resnet110",
    "vgg11",
    "mnist-cnn",
    "nmnist-cnn",
    "fashion-cnn",
    "fashion-mlp",
    "cifar10-cnn1",
    "cifar10-cnn2",
]


def _by_neuron(what: str) -> Callable[[dict[str, Any]], float]:
    return lambda given: _DSR[given.get("neuron", "if")][what]


def _by_method(dsr: Any, tssl: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda given: tssl if given.get("method") == "tssl-bp" else dsr


def _threshold(given: dict[str, Any]) -> float:
    return _by_method(_by_neuron("threshold")(given), 1.0)(given)


def _tau_s(given: dict[str, Any]) -> float:
    # stonezwr/TSSL-BP Networks/*.yaml: 3 today (N-MNIST: 4), 2 when the paper appeared.
    return 2.0 if given.get("gradient") == "layer" else 3.0


def _alpha(given: dict[str, Any]) -> float:
    # With a hard reset nothing carries over from a spike, so nothing is there to be rounded: 1 measured best.
    return 1.0 if given.get("reset") == "zero" else _by_neuron("alpha")(given)


def _gradient_scale(given: dict[str, Any]) -> float:
    # The official backward passes scale the threshold's gradient by 1 (IF) and dt (LIF): see Neuron.clamp_gradient.
    return 1.0 if given.get("neuron") == "if" else given.get("dt", 0.05)


class NetworkConfig(Section):
    """A spiking network: an architecture by name, or its layers one by one."""

    method: Literal["dsr", "tssl-bp"] = Field(
        default="dsr", description="neurons and gradients of DSR, or of TSSL-BP (LIF with synaptic current, hard reset)"
    )
    neuron: Literal["if", "lif"] = Field(
        default_factory=_by_method("if", "lif"), description="integrate-and-fire, or leaky integrate-and-fire"
    )
    steps: int = Field(
        default_factory=_by_method(10, 5), ge=1, le=1024, description="time steps N of one inference (TSSL-BP: 5)"
    )
    reset: Literal["subtract", "zero"] = Field(
        default_factory=_by_method("subtract", "zero"),
        description="at a spike, subtract the threshold (soft) or return to zero (hard, as stock Loihi LIF)",
    )
    readout: Literal["rate", "membrane"] = Field(
        default_factory=_by_method("membrane", "rate"),
        description="class scores: the (weighted) firing rate of a last spiking layer (TSSL-BP: its spikes filtered by "
        "synapses), or the membrane of a last accumulator that does not spike",
    )
    gradient: Literal["element", "layer"] = Field(
        default="element",
        description="of TSSL-BP: which neurons are trained by spike times and which by a surrogate is decided for each "
        "neuron and step (the official code today), or for each layer by its spike rate (when the paper appeared)",
    )
    tau_m: float = Field(default=5.0, ge=1, description="membrane time constant in steps (TSSL-BP)")
    tau_s: float = Field(default_factory=_tau_s, ge=1, description="time constant of synapses in steps (TSSL-BP)")
    tau: float = Field(default=1.0, gt=0, description="membrane time constant of LIF neurons")
    dt: float = Field(default=0.05, gt=0, description="length of a time step, in the unit of tau (LIF)")
    threshold: float = Field(
        default_factory=_threshold,
        gt=0,
        description="initial threshold of every layer; trained, one for each layer (default 6 for IF, 0.3 for LIF); "
        "fixed with TSSL-BP (default 1)",
    )
    alpha: float = Field(
        default_factory=_alpha,
        gt=0,
        le=1,
        description="neurons fire at alpha times the threshold (default 0.5 for IF, 0.3 for LIF, 1 with reset zero)",
    )
    threshold_bound: float = Field(
        default_factory=_by_neuron("threshold_bound"),
        gt=0,
        description="trained thresholds stay at or above this (default 0.01 for IF, 0.0005 for LIF)",
    )
    threshold_gradient_scale: float = Field(
        default_factory=_gradient_scale,
        ge=0,
        description="factor on the thresholds' gradients (default 1 for IF, dt for LIF, as in the official code)",
    )
    architecture: Architecture | None = Field(
        default=None, description="a network by name, instead of layers; see lapilli.train.architectures"
    )
    width: int | None = Field(
        default=None, ge=1, description="channels of the architecture's first stage; default: the published number"
    )
    stem: Literal["cifar", "imagenet"] = Field(
        default="cifar",
        description="start of a preact-resnet18 or 34: one 3x3 convolution, or 7x7 with stride 2 and average pooling; "
        "the imagenet networks also have no biases in their blocks and batch normalization on shortcuts",
    )
    layers: tuple[Layer, ...] = Field(
        default=(), description="conv, block, neurons, pool, adaptive_pool, dropout and linear layers, in order"
    )

    @model_validator(mode="after")
    def _layers_make_a_network(self) -> NetworkConfig:
        if self.threshold_bound > self.threshold:
            raise ValueError(f"threshold: {self.threshold} is below threshold_bound {self.threshold_bound}")
        if self.method == "tssl-bp":
            _check_tssl(self)
        if self.architecture is not None:
            if self.layers:
                raise ValueError(f"layers: architecture {self.architecture!r} has its own; give one of the two")
            if self.stem != "cifar" and self.architecture not in ("preact-resnet18", "preact-resnet34"):
                raise ValueError(f"stem: {self.architecture} has one stem only; leave it out")
            return self
        if self.width is not None or self.stem != "cifar":
            raise ValueError("width and stem belong to an architecture; give network.architecture, or leave them out")
        if not self.layers:
            raise ValueError("layers: there is none; give layers, or an architecture by name")
        _check_order(self.layers)
        return self


def _check_tssl(config: NetworkConfig) -> None:
    """Refuse what TSSL-BP does not have.

    Raises
    ------
    ValueError
        The message names it.
    """
    for name, only in (("neuron", "lif"), ("reset", "zero"), ("alpha", 1.0)):
        if getattr(config, name) != only:
            raise ValueError(f"{name}: with method tssl-bp it is {only!r} only; leave it out")
    if config.architecture is not None and "cnn" not in config.architecture and "mlp" not in config.architecture:
        raise ValueError(f"architecture: {config.architecture} needs batch normalization, which TSSL-BP does not have")
    for i, layer in enumerate(config.layers):
        where = f"layers.{i} ({layer.type})"
        if isinstance(layer, BlockLayer):
            raise ValueError(f"{where}: needs batch normalization, which method tssl-bp does not have")
        for name in ("batch_norm", "bias"):
            if getattr(layer, name, None):
                raise ValueError(
                    f"{where}: {name} with method tssl-bp: synapses filter what arrives, so a constant does not fold "
                    "into a bias of the membrane; leave it out"
                )


def _check_order(layers: tuple[AnyLayer, ...]) -> None:
    """Refuse layers that cannot follow each other, whatever their sizes.

    Raises
    ------
    ValueError
        The message names the layer.
    """
    if not isinstance(layers[-1], LinearLayer):
        raise ValueError(f"layers: the last layer is {layers[-1].type!r}; it must be linear, for the classes")
    seen_linear = False
    silent: str | None = None  # the layer whose sums still need neurons
    for i, layer in enumerate(layers):
        where = f"layers.{i} ({layer.type})"
        if isinstance(layer, LinearLayer):
            seen_linear = True
            if layer.features is None and i < len(layers) - 1:
                raise ValueError(f"{where}: features is missing; only the last layer may leave it out")
        elif seen_linear and not isinstance(layer, DropoutLayer):
            raise ValueError(f"{where}: a {layer.type} layer cannot follow a linear one")
        if silent is not None and not isinstance(layer, (BlockLayer, NeuronLayer)):
            raise ValueError(f"{where}: follows {silent}, which has no neurons at its end; put a neurons layer between")
        silent = (
            where if isinstance(layer, BlockLayer) or (isinstance(layer, ConvLayer) and not layer.neurons) else None
        )


class EventsConfig(Section):
    """How events become frames, one for each time step of the network."""

    size: Size | None = Field(
        default=None,
        description="rows and columns of the sensor, as [y, x]; default: what tonic says, else N-MNIST's 34",
    )
    polarities: Literal[1, 2] | None = Field(
        default=None,
        description="channels: 2, one for each sign of change, or 1 for both; default: what tonic says, else 2",
    )
    bins: Literal["time", "count"] = Field(
        default="time", description="frames of equal time, or of equal numbers of events"
    )
    window: float | None = Field(
        default=None,
        gt=0,
        description="microseconds from the first event that the frames cover together, with bins time; later events "
        "are left out. Default: each recording from its first to its last event",
    )
    most: int = Field(
        default=255, ge=1, le=255, description="larger counts of a pixel in a frame become this; 1: spikes, no counts"
    )
    resize: Size | None = Field(
        default=None, description="frames are scaled to [y, x] bilinearly, and are then no longer whole numbers"
    )


class SoundConfig(Section):
    """How recordings of sound become spectrograms, and which are the test set."""

    form: Literal["image", "series"] = Field(
        default="image",
        description="a sample is one image [1, bands, columns], shown at every step, or a series: the bands at one "
        "moment for each time step",
    )
    front_end: Literal["mel", "gammatone"] = Field(
        default="mel",
        description="bands: triangles on the mel scale, or gammatone filters on the ERB scale (a cochlea)",
    )
    bands: int = Field(default=32, ge=1, le=1024, description="number of frequency bands")
    columns: int = Field(default=32, ge=1, le=4096, description="moments of an image; a series has one for each step")
    low: float = Field(default=60.0, ge=0, description="lowest frequency in Hz")
    high: float = Field(default=4000.0, gt=0, description="highest frequency in Hz; at most half of every sample rate")
    window: float = Field(
        default=0.032, gt=0, description="seconds of sound that a moment looks at; more where moments are further apart"
    )
    duration: float | None = Field(
        default=None,
        gt=0,
        description="seconds that are looked at; silence follows shorter recordings. Default: all of each recording",
    )
    decibels: float = Field(
        default=60.0, gt=0, description="the loudest value of a recording becomes 1, what is so much softer 0"
    )
    test_below: int = Field(
        default=5,
        ge=0,
        description="recordings CLASS_SPEAKER_NUMBER.wav with a number below this are the test set (FSDD)",
    )
    test_speakers: tuple[str, ...] = Field(
        default=(), description="instead: all recordings of these speakers are the test set"
    )

    @model_validator(mode="after")
    def _has_a_range(self) -> SoundConfig:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} Hz is not below high, {self.high:g} Hz")
        return self


class DataConfig(Section):
    """A data set and its split."""

    name: str = Field(
        default="digits",
        description="a data set of lapilli.train.data.DATA_SETS, torchvision:NAME or tonic:NAME",
    )
    folder: str | None = Field(default=None, description="where the files of the data set are; digits need none")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="more arguments of a torchvision or tonic data set"
    )
    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="part held out, where the data set has no split of its own"
    )
    seed: int = Field(default=0, ge=0, description="seed of the split")
    validation: float = Field(
        default=0.0, ge=0, lt=1, description="part of the training samples that is held out to choose by (train.keep)"
    )
    size: int | None = Field(
        default=None,
        ge=1,
        description="imagefolder: images of any size are scaled and cut to squares of so many pixels (ImageNet: 224). "
        "Default: all files have one size, and stay as they are",
    )
    resize: int | None = Field(
        default=None,
        ge=1,
        description="with size: the shorter side is scaled to this, then the middle is cut out (default: 256/224 size)",
    )
    memory: float = Field(
        default=2.0,
        ge=0,
        description="imagefolder: images that take more than so many GiB (as float32) stay on disk and are decoded a "
        "batch at a time",
    )
    augment: Literal["none", "shift", "crop-flip", "resized-crop"] = Field(
        default="none",
        description="training images as they are, or shifted at random, zeros coming in; with crop-flip also mirrored "
        "at random (DSR for CIFAR). All frames of a sample are changed in the same way. resized-crop, of an "
        "imagefolder with size: a random part, scaled to size and mirrored at random (ImageNet)",
    )
    augment_pixels: int | None = Field(
        default=None,
        ge=1,
        description="shifted by up to so many pixels in both directions (default 1 for shift, 4 for crop-flip; DSR for "
        "CIFAR10-DVS: shift by 4, which is cropping after padding by 4)",
    )
    cutout: int = Field(
        default=0, ge=0, description="side of a square of zeros at a random place of training images; 0: none"
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        description="subtracted from pixels 0..1 of image files: one number, or one a channel",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, min_length=1, description="divides pixels of image files after that: one number, or one a channel"
    )
    events: EventsConfig = Field(default=EventsConfig(), description="for events: how they become frames")
    sound: SoundConfig = Field(default=SoundConfig(), description="for wav: how sound becomes spectrograms")

    @model_validator(mode="after")
    def _sizes_fit(self) -> DataConfig:
        if self.size is None:
            for name, given in (("resize", self.resize is not None), ("augment", self.augment == "resized-crop")):
                if given:
                    raise ValueError(f"{name}: {getattr(self, name)!r} needs size, the side of the images after it")
        elif self.name != "imagefolder":
            raise ValueError(f"size: images of {self.name!r} stay as they are; it is for name = 'imagefolder'")
        elif self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize: {self.resize} is below size {self.size}, which is cut out of it")
        return self


class TrainConfig(Section):
    """The training loop; DSR's own CIFAR setting is SGD, 200 epochs of batches of 128, warm-up 400 iterations."""

    epochs: int = Field(default=30, ge=0, description="passes over the training data")
    batch_size: int = Field(default=64, ge=1, description="samples in a batch (DSR: 128)")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum, or AdamW")
    learning_rate: float = Field(default=0.1, gt=0, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(default=5e-4, ge=0, description="also on thresholds: DSR's L2 term on them")
    decay: Literal["all", "weights"] = Field(
        default="all",
        description="what weight decay acts on: every parameter, as in DSR's code, or not on batch normalization, "
        "biases and thresholds",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="weights at the end: of the last epoch, or of the best one on validation samples "
        "(data.validation). The papers' codes choose by the test set",
    )
    warmup_iterations: int = Field(
        default=50, ge=0, description="iterations of linear warm-up (DSR: 400, about one epoch of CIFAR-10)"
    )
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="of the learning rate after warm-up")
    backward: Literal["auto", "representation", "approximate", "steps"] = Field(
        default="auto",
        description="gradients of float training: once for all steps (representation), or by autograd over all steps "
        "(steps); equal but for rounding. auto: once, where every layer allows it. approximate: once, and faster, "
        "without the covariance that batch normalization in training mode asks for",
    )
    rate_epochs: int = Field(
        default=0,
        ge=0,
        description="so many epochs first at the level of rates, one pass of mean currents for all steps: about N "
        "times faster; the remaining ones with spikes",
    )
    mixed_precision: bool = Field(
        default=False,
        description="bfloat16 products in the rate epochs, and in the gradients' convolutions of the others where the "
        "backward pass is at the level of the representation; never in what makes spikes, it changes them",
    )
    freeze_norm: bool = Field(
        default=False,
        description="batch normalization with the statistics of the rate epochs in the epochs with spikes: faster, and "
        "the network that will be folded",
    )
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient; none by default")
    weight_clip: float | None = Field(
        default=None, gt=0, description="weights are kept within plus and minus this; none by default (TSSL-BP: 4)"
    )
    loss: Literal["cross-entropy", "kernel", "count", "softmax"] = Field(
        default="cross-entropy",
        description="of the class scores; or of the output spikes, TSSL-BP's: van Rossum distance from a wanted train "
        "(kernel), spike counts, or cross-entropy of the sums of filtered spikes (softmax)",
    )
    target: tuple[Literal[0, 1], ...] | None = Field(
        default=None,
        min_length=1,
        description="loss kernel: spikes wanted from the right class, step by step, repeated to the end; default "
        "0 1 1 1 1, from 10 steps on 0 1, as in the official code",
    )
    target_filters: int = Field(
        default=2,
        ge=1,
        le=2,
        description="loss kernel: how often the wanted train is filtered; the official code does it twice today, and "
        "once when the paper appeared",
    )
    desired: float = Field(default=15.0, ge=0, description="loss count: filtered spikes wanted from the right class")
    undesired: float = Field(default=3.0, ge=0, description="loss count: filtered spikes allowed in other classes")
    seed: int = Field(default=0, ge=0, description="of initial weights, shuffling, dropout and augmentation")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="torch's CPU threads; their number changes the last bits of sums (default: torch's)",
    )


class ReluConfig(TrainConfig):
    """A conventional network of the same layers, which the spiking one starts from: DSR's hybrid training."""

    initial: str | None = Field(
        default=None,
        description="file of the weights to start with: a checkpoint of this network, or tensors in a safetensors or "
        ".pt file; with epochs = 0 they are taken as they are",
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="of every parameter (DSR: 1e-4)")
    percentile: float = Field(
        default=99.9, gt=0, le=100, description="every layer's threshold becomes this percentile of what its ReLUs send"
    )
    calibration_batches: int = Field(
        default=5, ge=1, description="batches of training samples for it (DSR: 5, of test samples)"
    )

    @model_validator(mode="after")
    def _is_conventional(self) -> ReluConfig:
        if self.epochs == 0 and self.initial is None:
            raise ValueError("epochs: 0, and no initial weights; give epochs, or the file of a trained network")
        for name in ("rate_epochs", "mixed_precision", "freeze_norm", "backward", "loss"):
            if getattr(self, name) != TrainConfig.model_fields[name].default:
                raise ValueError(f"{name}: a network without spikes has only the default; leave it out")
        return self


class BitTrueConfig(TrainConfig):
    """Fine-tuning of the folded, quantized network in the chip's own integers: short and gentle."""

    epochs: int = Field(default=10, ge=0, description="passes over the training data")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="SGD with momentum, or AdamW")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="on the latent weights")
    warmup_iterations: int = Field(default=0, ge=0, description="iterations of linear warm-up")
    mixed_precision: bool = Field(
        default=False, description="bfloat16 products in the backward pass; the forward pass stays the chip's integers"
    )


def settings_of_the_method(network: Any) -> dict[str, dict[str, Any]]:
    """What ``[train]`` and ``[bit_true]`` of a recipe have where they are left out, by its ``[network]`` section.

    TSSL-BP: stonezwr/TSSL-BP ``main.py`` and ``Networks/MNIST_CNN.yaml`` (CIFAR-10: learning rate 2e-4; N-MNIST: loss
    count); weight decay is torch's default for AdamW. What bit-true training takes is chosen here.
    """
    if not isinstance(network, dict) or network.get("method") != "tssl-bp":
        return {}
    shared = {"batch_size": 50, "gradient_clip": 1.0}
    train = {
        "epochs": 100,
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "weight_decay": 0.01,
        "warmup_iterations": 0,
        "schedule": "constant",
        "weight_clip": 4.0,
    }
    if network.get("readout", "rate") == "rate":
        shared["loss"] = "kernel"
    if network.get("gradient") == "layer":
        shared |= {"target": (0, 1, 0, 1, 1), "target_filters": 1}
        train["learning_rate"] = 2e-4
    return {"train": shared | train, "bit_true": shared | {"learning_rate": 1e-4}}
