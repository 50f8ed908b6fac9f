"""A training run, which can be stopped and resumed at any step.

The run is a small state machine over the optimizer step. What is due at a step (a validation, a checkpoint) is looked
up, not scheduled, so a run that was stopped between the step and what was due does that first when it is resumed, and
ends with the same bits on a CPU as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models import checkpoints
from models.ahead import DrawnAhead
from models.augmentation import Augmentation
from models.controls import RandomRepair
from models.data import classes_in, median_width, read_dataset, split_items, unlabelled_for_training
from models.errors import Diverged, InvalidInput, NotANumber, OutOfMemory, Stopped
from models.evaluate import as_numbers, better, evaluate
from models.events import Events
from models.losses import PIXEL_LOSSES
from models.losses.combine import AUTO, Objective, window_for
from models.networks import build, learn, learns_without_labels
from models.networks.unet import CHANNELS_LAST
from models.optimization import Average, make_optimizer
from models.sampling import Oversampling, PatchSampler, smaller_than
from models.scaling import fit_scaling
from models.spec import Spec

MATTERS = 0.02
"""Loss of Dice below which a check says that the answer hardly depends on what was taken from it."""
UNLABELLED = 255
"""The label of images without one, in data that have no value for "not labelled"; no class has this index."""
MAY_DIFFER = frozenset({"threads", "devices", "checkpoint_every", "variants", "controls"})
"""Fields of the specification that do not change the result, so a resumed run may change them."""


def choose_device(devices: str | int) -> torch.device:
    """torch.device for "auto", "cpu" or a number of devices."""
    if isinstance(devices, int) and devices > 1:
        raise InvalidInput(f"devices is {devices}; one run uses one device. Set devices to 1 or auto.")
    if devices == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if devices == 1 and torch.cuda.is_available():
        return torch.device("cuda")
    if devices in (1, "cpu"):
        return torch.device("cpu")
    raise InvalidInput(f"devices is {devices!r}; choose auto, cpu or 1.")


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """torch dtype in which the network multiplies; losses are always taken in float32."""
    if precision == "auto":
        fast = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        return torch.float32 if device.type == "cpu" else fast
    if precision == "float16" and device.type == "cpu":
        raise InvalidInput("precision is float16, which this CPU run cannot use; choose auto, float32 or bfloat16.")
    return getattr(torch, precision)


def _is_out_of_memory(error):
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


def _by_item(items, reports):
    return [{"id": item.id, "figures": as_numbers(report)} for item, report in zip(items, reports, strict=True)]


def _peak_bytes(device):
    """Most memory that the run has had at once: of the device, or of the process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # ru_maxrss would be that of a larger parent, which a child begins with; VmHWM is the program's own
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclasses.dataclass
class Progress:
    """Where a run stands: everything a checkpoint must hold besides tensors."""

    step: int = 0
    validated: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_metrics: dict = dataclasses.field(default_factory=dict)
    best_items: list = dataclasses.field(default_factory=list)
    stopping_value: float | None = None
    stale: int = 0
    stopped_early: bool = False
    stage: int = 0
    stage_began: int = 0
    plateau_value: float | None = None
    plateau_stale: int = 0
    drops: int = 0
    split: int = 1


class Run:
    """One training run.

    spec      models.spec.Spec
    data      folder with dataset.json
    out       folder for checkpoints/ and best.safetensors
    events    models.events.Events
    stopping  () -> bool: True once the run was asked to stop
    """

    def __init__(self, spec, data, out, *, events, stopping=lambda: False):
        self.spec, self.out, self.events, self.stopping = spec, Path(out), events, stopping
        self.dataset = read_dataset(data)
        split = split_items(
            self.dataset.items,
            folds=spec.folds,
            fold=spec.fold,
            validation_fraction=spec.validation_fraction,
            seed=spec.seed,
        )
        self.train_items, self.val_items = split
        if not self.train_items:
            raise InvalidInput("No item is left for training: all of them are for validation. Mark some as train.")
        self._check_dimensions()
        self.missing = self._missing_classes()
        self.device = choose_device(spec.devices)
        self.precision = choose_precision(spec.precision, self.device)
        torch.manual_seed(spec.seed)
        self.network_options = self._numbered(spec.network)
        self.network = build(
            self.network_options, channels_in=self.dataset.channels, channels_out=self.dataset.outputs
        ).to(self.device)
        self._check_patch()
        self.stages = spec.parts
        self.losses = self._resolved_losses()
        self.average = None if spec.average is None else Average(self.network, spec.average)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        self.progress, self.best, self.resumed_from, self._saved = Progress(), {}, None, 0
        self._begin_stage(0)
        self.scaling = fit_scaling(spec.scaling, self.train_items)
        self.unlabelled, without = self._unlabelled()
        self.small = smaller_than(spec.patch, (*self.train_items, *(self.unlabelled if without else ())))
        augmentation = Augmentation.read(spec.augment)
        filled = bool(without or self.small or augmentation.warps)
        self.ignore = UNLABELLED if filled and self.dataset.ignore is None else self.dataset.ignore
        self.sampler = PatchSampler(
            self.train_items,
            patch=spec.patch,
            batch=spec.batch,
            scaling=self.scaling,
            augment=augmentation,
            seed=spec.seed,
            unlabelled=self.unlabelled,
            without=without,
            ignore=self.ignore,
            oversampling=Oversampling(spec.foreground_fraction, spec.foreground_places),
        )
        self.batches = DrawnAhead(self._batch, last=spec.steps * spec.accumulate)
        self._seconds = None

    def _resolved_losses(self):
        """The loss of each stage, with the indices of named classes and the window that `auto` stands for."""
        window, found = None, []
        for stage in self.stages:
            loss = {**stage.loss, "terms": [self._numbered(term) for term in stage.loss.get("terms", ())]}
            penalty = loss.get("neighbour_penalty")
            if penalty and penalty.get("window") == AUTO:
                window = window or window_for(median_width(self.train_items, self.dataset.classes))
                loss["neighbour_penalty"] = {**penalty, "window": window}
            found.append(loss)
        for loss in found:
            Objective(loss)  # what a later stage cannot use is told before the first one begins
        return found

    def _begin_stage(self, number):
        """Take up the loss of a stage and an optimizer of its own; the weights go on."""
        self.stage, self.objective = self.stages[number], Objective(self.losses[number])
        self.optimizer = make_optimizer(self.stage.optimizer, self.network.parameters())

    def _next_stage(self):
        progress = self.progress
        progress.stage, progress.stage_began = progress.stage + 1, progress.step
        progress.stopped_early, progress.stopping_value, progress.stale = False, None, 0
        progress.plateau_value, progress.plateau_stale, progress.drops = None, 0, 0
        self._begin_stage(progress.stage)
        self.events.log(f"Stage {progress.stage + 1} of {len(self.stages)} begins after step {progress.step}.")

    def _numbered(self, options):
        """The options of a term or a network, in which priors and pairs may name classes, with their indices."""

        def index(named):
            if isinstance(named, str) and named not in self.dataset.classes:
                raise InvalidInput(f"There is no class {named!r}; the classes are {', '.join(self.dataset.classes)}.")
            return self.dataset.classes.index(named) if isinstance(named, str) else named

        named = {
            "priors": lambda prior: {**prior, "classes": [index(each) for each in prior["classes"]]},
            "pairs": lambda pair: {
                "subject": index(pair["subject"]),
                "others": [index(each) for each in pair["others"]],
            },
        }
        return {
            key: [named[key](each) for each in value] if key in named and value else value
            for key, value in options.items()
        }

    def _missing_classes(self):
        """Sentences on classes that no label of either side holds; refused where nothing at all is foreground."""
        sides = {"training": self.train_items, "validation": self.val_items}
        held = {side: classes_in(items, self.dataset) for side, items in sides.items()}
        if not any(held["training"][1:]):
            raise InvalidInput(
                f"None of the {len(self.train_items)} training labels has a pixel of"
                f" {', '.join(self.dataset.classes[1:])}: there is nothing to learn. Check the label map of"
                " the dataset, or label some structures."
            )
        consequences = {"training": "it cannot be learnt", "validation": "no figure is about it"}
        return [
            f"Class {name} is in no {side} label: {consequences[side]}."
            for side, items in sides.items()
            for name, count in zip(self.dataset.classes[1:], held[side][1:], strict=True)
            if items and not count
        ]

    def _check_dimensions(self):
        if self.spec.network.get("dimensions", 2) != self.dataset.dimensions:
            raise InvalidInput(
                f"The network has {self.spec.network.get('dimensions', 2)} dimensions and the images"
                f" {self.dataset.dimensions}; set network.dimensions to {self.dataset.dimensions}."
            )

    def _check_patch(self):
        multiple = self.network.multiple
        if any(side % multiple for side in self.spec.patch):
            nearest = [max(multiple, round(side / multiple) * multiple) for side in self.spec.patch]
            raise InvalidInput(
                f"patch is {list(self.spec.patch)}; this network needs multiples of {multiple}. Use {nearest}."
            )
        if self.network.receptive_field is None and max(self.spec.patch) <= multiple:
            raise InvalidInput(
                f"patch is {list(self.spec.patch)}, of which one pixel is left at the deepest level, and this network"
                f" normalises over pixels. Use {[2 * side for side in self.spec.patch]}, or fewer levels."
            )

    def _unlabelled(self):
        """Images without a label to learn from, and how many of them a batch holds; none when nothing could learn from
        them.
        """
        items, spec = unlabelled_for_training(self.dataset.unlabelled, self.val_items), self.spec
        wanted = learns_without_labels(self.network) or any(
            Objective(loss).learns_without_labels for loss in self.losses
        )
        if not items or not wanted or not spec.unlabelled_fraction:
            return (), 0
        if spec.batch == 1:
            raise InvalidInput(
                f"The dataset has {len(items)} images without labels, and a batch of 1 has no room for one beside a"
                " labelled one. Set batch to 2 or more, or unlabelled_fraction to 0."
            )
        return items, min(spec.batch - 1, max(1, round(spec.batch * spec.unlabelled_fraction)))

    # What is kept

    def _identity(self):
        """What must be equal for a checkpoint to belong to this run."""
        spec = {key: value for key, value in dataclasses.asdict(self.spec).items() if key not in MAY_DIFFER}
        return {
            **spec,
            "patch": list(self.spec.patch),
            "classes": list(self.dataset.classes),
            "train_items": [item.id for item in self.train_items],
            "val_items": [item.id for item in self.val_items],
            "unlabelled_items": [item.id for item in self.unlabelled],
        }

    def _weights_facts(self, step, metrics):
        """What a weights file says about itself: enough to rebuild and export the network without the run."""
        return {
            "kind": "weights",
            "spec": {
                **dataclasses.asdict(self.spec),
                "network": self.network_options,
                **self._decided_losses(),
                "patch": list(self.spec.patch),
            },
            "classes": list(self.dataset.classes),
            "channels": self.dataset.channels,
            "dimensions": self.dataset.dimensions,
            "scaling": self.scaling,
            "val_items": [item.id for item in self.val_items],
            "step": step,
            "metrics": metrics,
        }

    def _save_best(self):
        facts = self._weights_facts(self.progress.best_step, self.progress.best_metrics)
        return checkpoints.save(self.out / "best.safetensors", checkpoints.prefixed("model", self.best), facts)

    def _checkpoint(self):
        step, name = self.progress.step, f"checkpoints/{self.progress.step:06d}.safetensors"
        tensors = {
            **checkpoints.prefixed("model", self.network.state_dict()),
            **checkpoints.prefixed("best", self.best),
            **checkpoints.prefixed("optimizer", checkpoints.flatten_optimizer(self.optimizer)),
            "rng.torch": torch.get_rng_state(),
        }
        if self.average is not None:
            tensors |= checkpoints.prefixed("average", self.average.network.state_dict())
        facts = {
            "kind": "checkpoint",
            "identity": self._identity(),
            "progress": dataclasses.asdict(self.progress),
            "scaler": self.scaler.state_dict(),
            "scaling": self.scaling,
        }
        sha256 = checkpoints.save(self.out / name, tensors, facts)
        checkpoints.prune(self.out / "checkpoints")
        self._saved = step
        self.events("checkpoint", step=step, path=name, sha256=sha256, bytes=(self.out / name).stat().st_size)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same run."""
        tensors, facts = checkpoints.load(path)
        if facts.get("kind") != "checkpoint":
            raise InvalidInput(
                f"{path} holds weights, not the state of a run. Give it as a start, or resume from a file in"
                " checkpoints/."
            )
        identity, usual = self._identity(), dataclasses.asdict(Spec())  # an older one does not know newer fields
        if changed := sorted(key for key in identity if facts["identity"].get(key, usual.get(key)) != identity[key]):
            raise InvalidInput(
                f"{path} belongs to another run: {', '.join(changed)} differ. Resume with the same specification and"
                " data, or start anew."
            )
        self.network.load_state_dict(checkpoints.without_prefix("model", tensors))
        self.best = checkpoints.without_prefix("best", tensors)
        if self.average is not None:
            self.average.network.load_state_dict(checkpoints.without_prefix("average", tensors))
        self.progress = Progress(**facts["progress"])
        self._begin_stage(self.progress.stage)
        checkpoints.restore_optimizer(self.optimizer, checkpoints.without_prefix("optimizer", tensors))
        torch.set_rng_state(tensors["rng.torch"])
        self.scaler.load_state_dict(facts["scaler"])
        self.resumed_from = self._saved = self.progress.step
        if self.best:
            self._save_best()

    def start_from(self, path: Path) -> None:
        """Begin with the weights of another run."""
        tensors, _ = checkpoints.load(path)
        try:
            self.network.load_state_dict(checkpoints.without_prefix("model", tensors))
        except RuntimeError as error:
            raise InvalidInput(
                f"The weights in {path} do not fit this network: {' '.join(str(error).split())[:300]}."
            ) from error
        if self.average is not None:
            self.average.begin(self.network)

    # What is done

    def __call__(self):
        """Train to the end; raises Stopped after SIGTERM, with a checkpoint on the disk."""
        self.events(
            "start",
            steps=self.spec.steps,
            device=self.device.type,
            parameters=sum(p.numel() for p in self.network.parameters()),
            train_items=len(self.train_items),
            val_items=len(self.val_items),
            unlabelled_items=len(self.unlabelled),
            resumed_from=self.resumed_from,
            **self._resolved(),
        )
        if not self.val_items:
            self.events.log("There are no validation images, so the last weights count as the best ones.", "warning")
        for sentence in self.missing:
            self.events.log(sentence, "warning")
        if cutting := self.sampler.augmentation.may_change_topology:
            self.events.log(
                f"The augmentation has {', '.join(cutting)}, which may cut thin structures in the labels; a term on"
                " topology then learns from what was cut.",
                "warning" if any(term.name not in PIXEL_LOSSES for term in self.objective.terms) else "info",
            )
        if self.small:
            self.events.log(
                f"{len(self.small)} of {len(self.sampler.items)} images are smaller than the patch along a side; what"
                " they lack is filled up and counts nowhere."
            )
        try:
            self._loop()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            sides = " x ".join(map(str, self.spec.patch))
            raise OutOfMemory(
                f"A batch of {self.spec.batch} patches of {sides} pixels does not fit in the memory of the"
                f" {self.device.type}. Use a smaller batch or patch."
            ) from error
        finally:
            self.batches.close()
        self._finish()

    def _loop(self):
        self.network.train()
        while True:
            if self._validation_due() and not self.stopping():
                self._validate()
            unsaved = self._saved != self.progress.step or self.progress.step == 0
            if (self.stopping() or self._checkpoint_due()) and unsaved:
                self._checkpoint()
            if self.stopping():
                raise Stopped
            if self._ended():
                return
            if self._stage_ended():
                self._next_stage()
            self._step(self.progress.step + 1)

    def _stage_ended(self):
        return self.progress.stopped_early or self.progress.step - self.progress.stage_began >= self.stage.steps

    def _ended(self):
        return self._stage_ended() and self.progress.stage == len(self.stages) - 1

    def _validation_due(self):
        step = self.progress.step
        due = step > 0 and (step % self.spec.validation_interval == 0 or self._ended())
        return due and bool(self.val_items) and self.progress.validated != step

    def _checkpoint_due(self):
        step = self.progress.step
        return self._saved != step and (step % self.spec.checkpoint_every == 0 or self._ended())

    def _step(self, step):
        began = time.perf_counter()
        lr = self.stage.learning_rate(step - self.progress.stage_began, self.progress.drops)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        told = self._learnt(step, lr)
        if self.spec.clip_gradient is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step = step
        if self.average is not None:
            self.average.follow(self.network, step)
        self._tell_step(step, told, lr, time.perf_counter() - began)

    def _learnt(self, step, lr):
        """Put the gradients of a step in place, in parts where whole batches do not fit in memory; what to tell."""
        first = (step - 1) * self.spec.accumulate + 1
        numbers = range(first, first + self.spec.accumulate)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return [each for number in numbers for each in self._learn(number, step, lr)]
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or self.progress.split >= self.spec.batch:
                    raise
            self.progress.split *= 2  # outside of the handler, which holds on to what was allocated
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            parts, most = self.progress.split, -(-self.spec.batch // self.progress.split)
            self.events.log(
                f"A batch of {self.spec.batch} patches does not fit in the memory of the {self.device.type} at step"
                f" {step}. From here on it is learnt from in {parts} parts of up to {most}, whose gradients are added:"
                " slower, and the normalisation sees a part at a time.",
                "warning",
            )

    def _batch(self, number):
        """Images and labels of a batch as tensors, ready for the device, and pixel sizes."""
        images, labels, spacing = self.sampler.draw(number)
        images = torch.from_numpy(images).contiguous(memory_format=CHANNELS_LAST[self.dataset.dimensions])
        labels = torch.from_numpy(labels)
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()  # so that the copy need not be waited for
        return images, labels, spacing

    def _learn(self, number, step, lr):
        """Add the gradients of one batch: for each of its parts the loss, the parts of the objective and the network's
        own terms.
        """
        images, labels, spacing = self.batches(number)
        size = -(-len(images) // self.progress.split)
        return [
            self._learn_part(
                *(None if each is None else each[start : start + size] for each in (images, labels, spacing)),
                share=min(size, len(images) - start) / len(images),
                step=step,
                lr=lr,
            )
            for start in range(0, len(images), size)
        ]

    def _learn_part(self, images, labels, spacing, *, share, step, lr):
        images, labels = (each.to(self.device, non_blocking=True) for each in (images, labels))
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            logits, own = learn(self.network, images, labels, ignore=self.ignore, step=step)
        try:
            since = step - self.progress.stage_began
            losses, parts = self.objective(logits.float(), labels, step=since, ignore=self.ignore, spacing=spacing)
        except NotANumber:
            raise self._diverged("answer of the network", math.nan, step, lr) from None
        loss = sum(own.values(), losses).mean()
        if not math.isfinite(value := loss.item()):
            raise self._diverged("loss", value, step, lr)
        share /= self.spec.accumulate
        self.scaler.scale(loss if share == 1 else loss * share).backward()
        terms = {name + view: value for name, part in parts.items() for view, value in part.values.items()}
        return value, terms | {name: value.detach().mean() for name, value in own.items()}, parts

    @staticmethod
    def _diverged(what, value, step, lr):
        return Diverged(
            f"The {what} became {value} at step {step}. Use a learning rate below {lr:.3g}, or a smaller weight or a"
            " later from_step for the topology term."
        )

    def _tell_step(self, step, told, lr, seconds):
        """Means over the batches of the step; gradients are those of its last batch."""
        (_, names, parts), count = told[-1], len(told)
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        self.events.step(
            last=step == self.spec.steps,
            step=step,
            steps=self.spec.steps,
            epoch=self.sampler.epoch((step - 1) * self.spec.accumulate + 1),
            loss=sum(loss for loss, _, _ in told) / count,
            terms={name: sum(terms[name].item() for _, terms, _ in told if name in terms) / count for name in names},
            gradients={
                name: {"norm": part.norm.item(), "factor": part.factor.item(), "cosine": part.cosine.item()}
                for name, part in parts.items()
            },
            lr=lr,
            seconds_per_step=self._seconds,
        )

    @property
    def _judged(self):
        """The network that is validated and exported: the average of the weights where one is kept."""
        return self.network if self.average is None else self.average.network

    def _validate(self):
        answer = evaluate(
            self._judged,
            self.val_items,
            self.dataset,
            scaling=self.scaling,
            threshold=self.spec.threshold,
            rules=self.objective.rules,
            device=self.device,
            keep_going=lambda: not self.stopping(),
        )
        if answer is None:
            return
        metrics, per_class, reports = answer
        progress, value = self.progress, self._figure(metrics, self.spec.best_metric)
        progress.validated = progress.step
        best = progress.best_step is None or better(self.spec.best_metric, value, progress.best_value)
        if best:
            progress.best_step, progress.best_value, progress.best_metrics = progress.step, value, metrics
            progress.best_items = _by_item(self.val_items, reports)
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._judged.state_dict().items()}
            self._save_best()
        self._judge_stopping(metrics)
        self._judge_plateau(value)
        per_class = {"per_class": per_class} if len(per_class) > 1 else {}
        self.events(
            "validation", step=progress.step, metrics=metrics, items=len(self.val_items), best=best, **per_class
        )

    @staticmethod
    def _figure(metrics, name):
        if name not in metrics:
            raise InvalidInput(
                f"Metric {name!r} is not measured on these images; choose one of {', '.join(sorted(metrics))}."
            )
        return metrics[name]

    def _judge_stopping(self, metrics):
        rule, progress = self.stage.early_stopping, self.progress
        if rule is None:
            return
        value = self._figure(metrics, rule["metric"])
        if better(rule["metric"], value, progress.stopping_value):
            progress.stopping_value, progress.stale = value, 0
        else:
            progress.stale += 1
            progress.stopped_early = progress.stale >= rule["patience"]

    def _judge_plateau(self, value):
        """Lower the learning rate of a stage when the metric that chooses the best weights has long not improved."""
        progress = self.progress
        if self.stage.schedule != "plateau":
            return
        if better(self.spec.best_metric, value, progress.plateau_value):
            progress.plateau_value, progress.plateau_stale = value, 0
            return
        progress.plateau_stale += 1
        if progress.plateau_stale >= self.stage.plateau_facts()["patience"]:
            progress.plateau_stale, progress.drops = 0, progress.drops + 1

    def _finish(self):
        progress = self.progress
        if not self.best:
            progress.best_step = progress.step
            self.best = self._judged.state_dict()
        sha256 = self._save_best()
        checks = self._check()
        self.events("memory", peak_bytes=_peak_bytes(self.device))
        self.events(
            "done",
            step=progress.step,
            stopped_early=progress.stopped_early,
            best_step=progress.best_step,
            weights="best.safetensors",
            sha256=sha256,
            metrics=progress.best_metrics,
            items=progress.best_items,
            **self._beside(),
            **({"checks": checks} if checks else {}),
            **self._resolved(),
        )

    def _beside(self):
        """{"shifted", "controls"}: figures of each image of a shifted set by the best weights, and of each validation
        image by masks that were edited at random, as often as they have wrong features; {} where none is asked for.
        """
        found, options = {}, {"scaling": self.scaling, "threshold": self.spec.threshold, "device": self.device}
        if not self.dataset.shifted and not self.spec.controls:
            return found
        self._judged.load_state_dict(self.best)
        if self.dataset.shifted:
            _, _, reports = evaluate(self._judged, self.dataset.shifted, self.dataset, **options)
            found["shifted"] = _by_item(self.dataset.shifted, reports)
        if self.spec.controls and self.val_items:
            change = RandomRepair(self.spec.seed)
            _, _, reports = evaluate(self._judged, self.val_items, self.dataset, change=change, **options)
            found["controls"] = {"random_repair": _by_item(self.val_items, reports)}
        return found

    def _resolved(self):
        """{"resolved": fields of the specification that the data decided}; {} when there is none."""
        decided = {"network": self.network_options, **self._decided_losses()}
        found = {name: value for name, value in decided.items() if value != getattr(self.spec, name)}
        return {"resolved": found} if found else {}

    def _decided_losses(self):
        """The losses of the specification as they are: {"loss"} and, where there are stages, {"stages"}."""
        if self.spec.stages is None:
            return {"loss": self.losses[0]}
        decided = zip(self.spec.stages, self.losses, strict=True)
        stages = [{**stage, "loss": loss} if stage.get("loss") else stage for stage, loss in decided]
        return {"loss": self.spec.loss, "stages": stages}

    def _check(self):
        """{check: metrics} of the best weights under what a network says it must not stand (`checks`), and a line on
        each; {} for other networks and without validation images.
        """
        contexts = self.network.checks() if hasattr(self.network, "checks") and self.val_items else {}
        if not contexts:
            return {}
        self.network.load_state_dict(self.best)
        found, options = {}, {"scaling": self.scaling, "threshold": self.spec.threshold, "device": self.device}
        for name, context in contexts.items():
            with context:
                found[name] = evaluate(self.network, self.val_items, self.dataset, **options)[0]
            before, after = (metrics.get("dice") or 0.0 for metrics in (self.progress.best_metrics, found[name]))
            idle = after > before - MATTERS
            message = f"With {name.replace('_', ' ')} Dice is {after:.3f} instead of {before:.3f}"
            self.events.log(
                message + (": the answer hardly depends on them." if idle else "."), "warning" if idle else "info"
            )
        return found


def train(
    facts: dict[str, Any],
    data: str | Path,
    out: str | Path,
    *,
    events: Events,
    resume: Path | None = None,
    start_from: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Train by the JSON object `facts`; see `Run`. Unknown fields of it are told as a warning."""
    spec, unknown = Spec.read(facts)
    if unknown:
        events.log(
            f"The specification has fields that training does not know and leaves alone: {', '.join(unknown)}.",
            "warning",
        )
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    run = Run(spec, data, out, events=events, stopping=stopping)
    if start_from is not None and resume is None:
        run.start_from(start_from)
    if resume is not None:
        run.resume(resume)
    run()
