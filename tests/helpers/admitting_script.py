"""What a scripted server says that admits and answers whole sequences, except those that a test has it refuse."""

import numpy as np
from google.protobuf.message import Message
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb

from helpers.scripted_server import refusal


class Script:
    """Answers the sessions of a server that admits all: zeros [T, 3], once all frames are there.

    refuses: how many are refused before. refuse: whether a session that is opened so is refused. silent: says nothing.
    ends: whether what was admitted is answered.
    """

    def __init__(self):
        self.refuses = 0
        self.refuse = lambda opening: False
        self.silent = False
        self.ends = True
        self._steps = {}

    def __call__(self, entry: Message) -> Message | None:
        if entry.HasField("open"):
            self.refuses -= 1
            if self.refuses >= 0 or self.refuse(entry.open):
                return refusal(0.001)
            self._steps[entry.session] = 0
        if self.silent or entry.session not in self._steps:
            return None
        reply = pb.SessionResponse()
        if entry.HasField("open"):
            reply.opened.weights_version, reply.opened.window_steps = 1, 64
        self._steps[entry.session] += entry.frames.shape[0] if entry.HasField("frames") else 0
        if entry.end and self.ends:
            outputs = np.zeros((self._steps.pop(entry.session), 3), "f4")
            reply.outputs.outputs.values.CopyFrom(tensors.encode(outputs))
            reply.ended.final_state.hidden.CopyFrom(tensors.encode(np.zeros((1, 1, 7), "f4")))
        return reply
