"""Checks of methods, under Lightning's own Trainer."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from morphem.channels.base import ChannelStrategy
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.normalizers import SelfNormalize
from morphem.rng import mix_tensor
from morphem.spec import from_spec
from morphem.testing.batches import PANELS, tiny_batch
from morphem.testing.contract import (
    attempt,
    check_class,
    check_embedding,
    fail,
    listed,
    named_tensors,
    rebuild,
    require,
    storages,
)
from morphem.testing.encoders import check_encoder
from morphem.testing.parts import build
from morphem.testing.training import Trace, train
from morphem.types import StepOutput

FALL = 0.01
Strategy = type[ChannelStrategy] | None
"""The channel strategy that a method's smallest instance is built over; None: the method's own choice."""


def check_method(cls: type[Method], *, epochs: int = 30) -> None:
    """Check that a method keeps its contract.

    It trains an encoder and its loss falls on synthetic images; gradients reach all that is trained; nothing moves
    between optimizer steps; a teacher shares no storage with the student; two runs give the same weights, and so does a
    run that was cut in the middle of an epoch and resumed; validation moves nothing; the checkpoint alone rebuilds the
    encoder.

    Args:
        cls: The class; its `tiny()` is what is checked.
        epochs: Epochs of two steps in which the loss must fall.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Method)
    check_step(cls)
    check_validation(cls)
    check_learning(cls, epochs)
    check_accumulation(cls)
    check_resume(cls)


def make(cls: type[Method], strategy: Strategy = None, *, seed: int = 0) -> Method:
    """Build a method's smallest instance from a fixed seed, over a channel strategy's smallest instance where given.

    Args:
        cls: The method.
        strategy: The channel strategy; None: the method's own choice.
        seed: Of the weights.
    """
    if strategy is None:
        return build(cls, seed=seed)  # type: ignore[no-any-return]
    takes = "encoder" in inspect.signature(cls.tiny).parameters
    require(takes, cls, "its tiny() takes no `encoder`, so it cannot be tried over other channel strategies")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(attempt(strategy, "tiny() cannot be built", strategy.tiny), SelfNormalize(), input_size_px=32)
        return attempt(  # type: ignore[no-any-return]
            cls, f"tiny() cannot be built over {strategy.__name__}", lambda: cls.tiny(encoder)
        )


def panels_of(strategy: Strategy) -> Sequence[Sequence[str]]:
    """Return the channel types of the images that a strategy is tried on: its own `panels` where it refuses others."""
    return getattr(strategy, "panels", PANELS)


def check_step(cls: type[Method], strategy: Strategy = None) -> None:
    """Check what a step returns, that its gradient reaches the encoder, and that teacher and student are two."""
    method = make(cls, strategy)
    method.train()
    require(isinstance(method.encoder, Encoder), cls, "has no `encoder` that is an Encoder")
    reason = cls.compatible(method.encoder.channels)
    require(reason is None, cls, f"refuses the channel strategy of its own tiny(): {reason}")
    check_storage(cls, method)
    with torch.random.fork_rng():
        views = attempt(cls, "cannot make views", lambda: method.make_views(tiny_batch(panels_of(strategy))))
        output = attempt(cls, "step() fails on an ordinary batch", lambda: method.step(views))
    require(isinstance(output, StepOutput), cls, f"step() returns a {type(output).__name__}, not a StepOutput")
    loss, embedding = output.loss, output.embedding
    require(
        loss.shape == () and loss.dtype == torch.float32, cls, f"the loss is {loss.dtype} of shape {tuple(loss.shape)}"
    )
    require(bool(loss.isfinite()), cls, f"the loss of an ordinary batch is {loss.item()}")
    require(loss.requires_grad, cls, "the loss has no graph; nothing would be trained")
    rows = views[0].n_planes if method.encoder.per_channel else views[0].n_images
    check_embedding(cls, embedding, (rows, method.encoder.embed_dim))
    require(not embedding.requires_grad, cls, "the embedding is not detached; callbacks would hold the graph in memory")
    attached = [name for name, value in output.logs.items() if torch.is_tensor(value) and value.requires_grad]
    require(not attached, cls, f"logs {attached} with a graph; detach them")
    rebuild(cls, method)


def check_storage(cls: type, method: nn.Module) -> None:
    """Check that what stands still shares no memory with what is trained, as a teacher that is the student would."""
    trained = {p.untyped_storage().data_ptr(): name for name, p in method.named_parameters() if p.requires_grad}
    for name, value in named_tensors(method):
        if not value.requires_grad and value.numel():
            owner = trained.get(value.untyped_storage().data_ptr())
            require(
                owner is None, cls, f"'{name}' shares its memory with the trained '{owner}'; copy it (make_teacher)"
            )


def check_validation(cls: type[Method], strategy: Strategy = None) -> None:
    """Check that a step in evaluation mode gives the same loss twice and moves nothing."""
    method = make(cls, strategy)
    method.eval()
    batch = tiny_batch(panels_of(strategy))
    before = {name: value.clone() for name, value in named_tensors(method)}
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            losses.append(float(method.step(method.make_views(batch)).loss))
    require(math.isfinite(losses[0]), cls, f"the validation loss of an ordinary batch is {losses[0]}")
    require(
        losses[0] == losses[1],
        cls,
        f"gives validation losses {losses} for one batch; make step() deterministic in eval()",
    )
    moved = [name for name, value in named_tensors(method) if not torch.equal(value, before[name])]
    require(not moved, cls, f"validation moves {listed(moved)}; centres, queues and teachers must stand still")
    first, second = (method.predict_step(batch, 0), method.exported_encoder().features(batch))
    require(torch.equal(first, second), cls, "predict_step gives other numbers than the exported encoder's features()")


def check_learning(cls: type[Method], epochs: int, strategy: Strategy = None) -> None:
    """Check that training lowers the loss, reaches all that is trained, and moves what is exported."""
    method = make(cls, strategy)
    panels = panels_of(strategy)
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    frozen = {name for name, value in method.named_parameters() if not value.requires_grad}
    trace = attempt(cls, "cannot be trained on ordinary batches", lambda: train(method, epochs=epochs, panels=panels))
    require(isinstance(trace.outputs, dict) and "embedding" in trace.outputs, cls, "training_step returns no embedding")
    require(
        all(map(math.isfinite, trace.losses)), cls, f"the loss becomes {trace.losses[-1]} in {len(trace.losses)} steps"
    )
    _check_reached(cls, method, trace)
    require(not trace.stray, cls, f"{sorted(trace.stray)[:5]} require no gradient but get one")
    now = {name for name, value in method.named_parameters() if not value.requires_grad}
    require(now == frozen, cls, f"switches requires_grad of {listed(sorted(now ^ frozen))} during training")
    key = method.exported_encoder_key
    ends = {name: value for name, value in method.named_parameters() if name.startswith(key)}
    moved = any(not torch.equal(value, start[name]) for name, value in ends.items())
    require(
        moved, cls, "training leaves the exported encoder as it was; export the one that is trained, or its teacher"
    )
    check_encoder(method.exported_encoder(), tiny_batch(panels))
    _check_loss_falls(cls, method, start, len(trace.losses), panels)


def _check_loss_falls(
    cls: type, method: Method, start: dict[str, Tensor], n_steps: int, panels: Sequence[Sequence[str]]
) -> None:
    """Compare what was trained with what it started from, against the same teacher, centre and queue.

    The losses along the run would not do: where the target moves, as a teacher does, a healthy loss may rise.
    """
    after = _loss(method, panels)
    with torch.no_grad():
        for name, value in method.named_parameters():
            if value.requires_grad:
                value.copy_(start[name])
    before = _loss(method, panels)
    require(
        after < before - FALL * abs(before),
        cls,
        f"{n_steps} steps do not lower the loss: {before:.4f} with the first weights, {after:.4f} with the last",
    )


def _loss(method: Method, panels: Sequence[Sequence[str]]) -> float:
    """Return the mean training loss over new views of the images that were trained on."""
    method.train()
    total = 0.0
    with torch.random.fork_rng(), torch.no_grad():
        for seed in (0, 1):
            torch.manual_seed(seed)
            batch = tiny_batch(panels, seed=seed)
            for draw in range(4):
                views = method.make_views(batch._replace(seeds=mix_tensor(batch.seeds, "judge", draw)))
                total += float(method.step(views).loss)
    return total / 8


def _check_reached(cls: type, method: Method, trace: Trace) -> None:
    trained = {name for name, value in method.named_parameters() if value.requires_grad}
    missing = sorted(trained - trace.reached)
    require(
        not missing,
        cls,
        f"no gradient reaches {listed(missing)} in {len(trace.losses)} steps; use the parameter, remove it, or set "
        "requires_grad=False (DDP waits for every trained parameter)",
    )
    held = {id(p) for group in _optimizer(method).param_groups for p in group["params"]}
    left_out = sorted(
        name for name, value in method.named_parameters() if value.requires_grad and id(value) not in held
    )
    require(not left_out, cls, f"the optimizer does not hold {listed(left_out)}, which require gradients")


def _optimizer(method: Method) -> torch.optim.Optimizer:
    optimizer: Any = method.optimizers(use_pl_optimizer=False)
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer[0]


def check_accumulation(cls: type[Method]) -> None:
    """Check that weights move only with an optimizer's step, also the teacher's where batches are accumulated."""
    trace = attempt(
        cls, "cannot be trained with accumulated batches", lambda: train(build(cls), epochs=2, accumulate=2)
    )
    moved = sorted(trace.moved_between)
    require(not moved, cls, f"{listed(moved)} move between optimizer steps; follow up in after_update()")


def check_resume(cls: type[Method], strategy: Strategy = None) -> None:
    """Check that two runs give the same weights, and so does one that was cut in the middle of an epoch and resumed."""
    with TemporaryDirectory() as name:
        folder, panels = Path(name), panels_of(strategy)
        whole = make(cls, strategy)
        trace = train(whole, epochs=2, n_batches=3, panels=panels, save_at=4, folder=folder)
        twin = make(cls, strategy)
        train(twin, epochs=2, n_batches=3, panels=panels)
        _check_equal(cls, whole, twin, "two runs with one seed end with different weights")
        resumed = make(cls, strategy)
        with torch.no_grad():  # weights of its own, so that what a checkpoint leaves out shows
            for value in resumed.parameters():
                value.mul_(0.5)
        rest = attempt(
            cls,
            "cannot be resumed from its checkpoint",
            lambda: train(resumed, epochs=2, n_batches=3, panels=panels, resume=trace.checkpoint),
        )
        require(
            len(rest.losses) == 2, cls, f"a run cut after step 4 of 6 goes on for {len(rest.losses)} steps instead of 2"
        )
        _check_equal(
            cls, whole, resumed, "a run that was cut and resumed ends with other weights than one that was not"
        )
        check_checkpoint(cls, trace.checkpoint)


def _check_equal(cls: type, first: Method, second: Method, message: str) -> None:
    theirs = second.state_dict()
    parted = [name for name, value in first.state_dict().items() if not torch.equal(value, theirs[name])]
    if parted:
        size = max(float((first.state_dict()[name] - theirs[name]).abs().max()) for name in parted)
        fail(cls, f"{message}: {len(parted)} tensors, first '{parted[0]}', by up to {size:.2g}")


def check_checkpoint(cls: type, file: Path) -> None:
    """Check that a checkpoint is plain data and rebuilds the exported encoder by itself."""
    checkpoint = attempt(cls, "its checkpoint holds more than data", lambda: torch.load(file, weights_only=True))
    require(
        "morphem" in checkpoint, cls, "its checkpoint has no 'morphem'; call super().on_save_checkpoint(checkpoint)"
    )
    about = checkpoint["morphem"]
    with torch.random.fork_rng():
        method = attempt(cls, "cannot be built from its checkpoint's spec", lambda: from_spec(about["spec"]))
    require(type(method) is cls, cls, f"its checkpoint's spec builds a {type(method).__name__}")
    prefix = about["exported"]
    weights: dict[str, Tensor] = {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    encoder = method.exported_encoder()
    attempt(cls, f"the keys '{prefix}...' do not fit the exported encoder", lambda: encoder.load_state_dict(weights))
    require(bool(storages(encoder)), cls, "exports an encoder without weights")
