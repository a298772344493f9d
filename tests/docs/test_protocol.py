"""docs/protocol.md: its tables are those of the code, its example is a client that works, nothing is left out."""

import dataclasses
import re
import shutil
import urllib.request

import numpy as np
import pytest
import seqloom
from google.rpc import code_pb2
from helpers.pages import ROOT, code, section, table, text
from helpers.plain_twin import plain_outputs
from helpers.real_server import SMALL, write_models
from prometheus_client.parser import text_string_to_metric_families
from seqloom.errors import from_status
from seqloom.v1 import inference_service_pb2, model_service_pb2
from seqloom_server.config import ServerConfig
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.nn import spec
from seqloom_server.nn.files import model_folder
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.inference import group_call, group_opening, outbox, session_opening, stream_call, stream_session

PAGE = "docs/protocol.md"


def test_the_example_is_a_client_that_works(server_process, tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "models")
    started = server_process("--models", tmp_path / "models")
    (example,) = code(PAGE)
    assert example.count('"localhost:50051"') == 1
    names = {}
    exec(compile(example.replace("localhost:50051", started.address), PAGE, "exec"), names)
    network, _ = model_folder.load(ROOT / "examples" / "models" / "digits")
    _, logits, (final,) = plain_outputs(network, names["xs"])
    assert names["labels"] == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(names["final_state"], final, rtol=1e-4, atol=1e-6)


def test_the_table_of_errors_is_what_is_sent_and_what_the_sdk_makes_of_it():
    rows = {reason: (code, kind) for reason, code, kind, _ in table(PAGE, "Errors")}
    statuses = {reason: status_of(ServerError(reason, "why"), "id") for reason in Reason}
    assert rows == {
        reason.value: (code_pb2.Code.Name(status.code), type(from_status(status)).__name__)
        for reason, status in statuses.items()
    }


def test_every_method_and_every_field_of_a_session_is_there():
    page = text(PAGE)
    for file in (inference_service_pb2, model_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"{service.name}.{method.name}`" in page
    for kind, heading in (("Session", "Sessions"), ("Group", "Stream groups")):
        cells = re.findall(r"^\| (`.*?) \|", section(PAGE, heading), re.MULTILINE)
        told = {name for cell in cells for name in re.findall("`([a-z_]+)`", cell)}
        for side in ("Request", "Response"):
            message = getattr(inference_service_pb2, f"{kind}{side}")
            assert {field.name for field in message.DESCRIPTOR.fields} - {kind.lower()} <= told


def test_the_limits_are_those_of_the_server():
    limits = {name: int(default.replace(",", "")) for name, default in table(PAGE, "Limits")}
    assert limits == {
        field.name: getattr(ServerConfig(), field.name) for field in model_service_pb2.Limits.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (stream_call._MAX_ENTRIES, "a message of more than {:,} entries"),
        (session_opening._MIN_WINDOW_STEPS, "at most {} steps may be sent: no server has a smaller one"),
        (session_opening.WINDOW_BYTES >> 20, "the number of steps whose requested outputs take {} MiB"),
        (stream_session.MAX_ENTRY_BYTES >> 10, "An entry holds about {} KiB of outputs"),
        (stream_session.MAX_ENTRY_BYTES >> 10, "Answers are cut in blocks of about {} KiB"),
        (group_call.MAX_CALL_BYTES >> 20, "Frames of one call have at most {} MiB, and their outputs as well"),
        (session_opening.WINDOW_BYTES >> 20, "as many as n streams' outputs take {} MiB"),
        (group_opening._FRAMES_BYTES >> 20, "or their frames {} MiB, if that is less"),
        (outbox._MAX_UNREAD_BYTES >> 20, "while more than {} MiB that it sent were not read"),
        (int(ServerConfig().idle_seconds), "(an option of the server, {} by default)"),
        (spec.MAX_OUTPUT_SIZE, "has up to {:,} classes"),
        (spec.MAX_LAYERS, "a state up to {} layers"),
        (spec.MAX_HIDDEN_SIZE, "layers of {:,} units"),
        (seqloom.tensors.MAX_RANK, "At most {} dimensions"),
    ],
)
def test_numbers_that_are_told_are_right(number, words):
    assert words.format(number) in " ".join(text(PAGE).split())


def test_every_cause_of_a_refusal_is_there():
    (meaning,) = [meaning for name, _, _, meaning in table(PAGE, "Metrics") if name == "seqloom_rejected_total"]
    assert {*Overload, "overloaded"} <= set(re.findall("[a-z_]+", meaning))


def test_the_table_of_metrics_is_what_a_server_exports(server_process, tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    started = server_process("--models", tmp_path / "models", "--max-sessions", 1)
    with seqloom.Client(started.address, retries=0) as client:
        client.infer("small", [np.zeros((3, 5))])
        with client.stream("small"), pytest.raises(seqloom.Overloaded), client.stream("small"):
            pass
        client.infer("small", [np.zeros((3, 5))])  # by then the stream that was left has been cancelled
        with urllib.request.urlopen(f"http://{started.http_address}/metrics") as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
    exported = {}
    for family in families:
        if family.name.endswith("_created"):  # as the page says, beside each counter and histogram
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exported[name] = (family.type, labels)
    rows = table(PAGE, "Metrics")
    assert exported == {name: (kind, set(labels.split())) for name, kind, labels, _ in rows}
    assert len(rows) == len(exported)


def test_the_options_that_it_names_are_there():
    options = {field.name for field in dataclasses.fields(ServerConfig)}
    for name in set(re.findall(r"`((?:max|window|idle)_\w+)`", text(PAGE))):
        assert name in options
