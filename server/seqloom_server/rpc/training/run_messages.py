"""Converts runs, optimizers and progress to and from protobuf messages."""

from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.engine.run_owner import RunOwner
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
# field of the message: field of OptimizerSpec
_FIELDS = {
    "learning_rate": "lr",
    "momentum": "momentum",
    "beta1": "beta1",
    "beta2": "beta2",
    "epsilon": "epsilon",
    "weight_decay": "weight_decay",
}


def optimizer(message: pb.Optimizer) -> OptimizerSpec:
    """Returns a checked OptimizerSpec. Raises ServerError, which names the invalid field."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise invalid("optimizer.kind", f"is {message.kind}: expected an OptimizerKind")
    values = {spec_field: getattr(message, field) for field, spec_field in _FIELDS.items()}
    if kind == "sgd":  # which has none of these
        for spec_field in ("beta1", "beta2", "epsilon"):
            del values[spec_field]
    try:
        return OptimizerSpec(kind, **values)
    except InvalidSpec as error:
        name = next((field for field, spec_field in _FIELDS.items() if spec_field == error.field), error.field)
        raise invalid(f"optimizer.{name}", str(error).partition(": ")[2]) from None


def run(run: TrainingRun, client: str = "") -> pb.Run:
    """Returns the message of a run. client: whose calls it reports."""
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
    for field, spec_field in _FIELDS.items():
        setattr(message.optimizer, field, getattr(meta.optimizer, spec_field))
    return message


def runs(runs: RunTable, owner: RunOwner) -> list[pb.Run]:
    """Returns the messages of an owner's runs, by id; a broken run has only its id and the reason."""
    broken = [pb.Run(id=run_id, broken=why) for run_id, why in runs.broken_for(owner).items()]
    return sorted([*map(run, runs.all(owner)), *broken], key=lambda message: message.id)


def fill_progress(message: pb.RunProgress, progress: Progress) -> None:
    """Fills a progress message in place."""
    message.step = progress.step
    message.durable_step = progress.durable_step
    message.calls_durable = progress.calls_durable
