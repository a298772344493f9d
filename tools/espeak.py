"""espeak-ng's library through ctypes: a text spoken by a voice, with the sample at which every phoneme begins."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

_RETRIEVAL, _PHONEME_EVENTS = 2, 1
_RATE, _PITCH = 1, 3
_PLAIN_CHARACTERS = 1
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Phoneme:
    """A phoneme in espeak-ng's own letters ("_:" and "_" are pauses, "_|" ends a word), and the sample it begins at."""

    name: str
    start: int


@dataclass(frozen=True)
class Spoken:
    """samples: int16 [n] at `rate` Hz. words: the phonemes of each word of the text, its "_|" last."""

    samples: np.ndarray[Any, np.dtype[np.int16]]
    rate: int
    words: list[list[Phoneme]]


class Espeak:
    """The library, initialised once a process. Raises OSError where it is not installed (Debian: libespeak-ng1)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate: int = self._library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS)
        if self.rate <= 0:
            raise OSError("espeak-ng finds no voice data")

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Spoken:
        """Returns `text` as spoken by `voice`, such as "cmn-latn-pinyin+m3"; pitch is from 0 to 100.

        Raises ValueError where the voice is unknown or the text cannot be spoken.
        """
        pieces: list[np.ndarray[Any, np.dtype[np.int16]]] = []
        words: list[list[Phoneme]] = []

        @_Callback
        def take(samples: Any, count: int, events: Any) -> int:
            if samples and count:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
            for event in events:
                if event.type == _END_OF_LIST:
                    break
                if event.type == _WORD and event.length:
                    words.append([])
                if event.type == _PHONEME and words:
                    words[-1].append(Phoneme(event.id.string.decode(), event.sample))
            return 0

        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._library.espeak_SetSynthCallback(take)
        spoken = text.encode()
        if self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _PLAIN_CHARACTERS, None, None):
            raise ValueError(f"espeak-ng could not speak {text!r}")
        self._library.espeak_Synchronize()
        return Spoken(np.concatenate(pieces), self.rate, words)
