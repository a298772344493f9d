"""Runs, optimizers and progress, to and from messages."""

from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.engine.training.run_table import RunTable
from seqloom_server.engine.training.training_run import Progress, TrainingRun
from seqloom_server.errors import invalid
from seqloom_server.nn.optimizer_spec import OptimizerKind, OptimizerSpec
from seqloom_server.nn.spec import InvalidSpec
from seqloom_server.rpc.models.model_messages import spec_message

_KINDS: "dict[pb.OptimizerKind, OptimizerKind]" = {
    pb.OPTIMIZER_KIND_SGD: "sgd",
    pb.OPTIMIZER_KIND_ADAM: "adam",
    pb.OPTIMIZER_KIND_ADAMW: "adamw",
}
# by the message's field, that of OptimizerSpec
_FIELDS = {
    "learning_rate": "lr",
    "momentum": "momentum",
    "beta1": "beta1",
    "beta2": "beta2",
    "epsilon": "epsilon",
    "weight_decay": "weight_decay",
}


def optimizer(message: pb.Optimizer) -> OptimizerSpec:
    """Raises ServerError naming the field that no optimizer can have."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise invalid("optimizer.kind", f"is {message.kind}: expected an OptimizerKind")
    wanted = {own: getattr(message, name) for name, own in _FIELDS.items()}
    if kind == "sgd":  # which has none of these
        for own in ("beta1", "beta2", "epsilon"):
            del wanted[own]
    try:
        return OptimizerSpec(kind, **wanted)
    except InvalidSpec as error:
        name = next((name for name, own in _FIELDS.items() if own == error.field), error.field)
        raise invalid(f"optimizer.{name}", str(error).partition(": ")[2]) from None


def run(run: TrainingRun, client: str = "") -> pb.Run:
    """client: whose calls are told of."""
    meta, progress = run.meta, run.progress(client)
    message = pb.Run(
        id=meta.id,
        model=meta.model,
        weights_version=meta.weights_version,
        clip_norm=meta.clip_norm,
        checkpoint_interval=meta.checkpoint_interval,
        step=progress.step,
        durable_step=progress.durable_step,
        loss=run.loss,
        accumulated_calls=run.accumulated_calls,
        checkpoints=run.checkpoints.names,
        calls_done=run.calls.order.last_begun(client),
        calls_durable=progress.calls_durable,
        waiting_for=run.calls.order.waiting_for(),
    )
    message.spec.CopyFrom(spec_message(run.weights.network.spec))
    message.optimizer.kind = next(number for number, kind in _KINDS.items() if kind == meta.optimizer.kind)
    for name, own in _FIELDS.items():
        setattr(message.optimizer, name, getattr(meta.optimizer, own))
    return message


def runs(runs: RunTable) -> list[pb.Run]:
    """All of them, by id; of those that are broken only why."""
    broken = [pb.Run(id=run_id, broken=why) for run_id, why in runs.broken.items()]
    return sorted([*map(run, runs.all()), *broken], key=lambda message: message.id)


def fill_progress(message: pb.RunProgress, progress: Progress) -> None:
    """Fills a message in its place."""
    message.step = progress.step
    message.durable_step = progress.durable_step
    message.calls_durable = progress.calls_durable
