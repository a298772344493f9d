"""Which scope of a token each method needs; what is not listed here needs `admin`."""

ANY = ""  # of any token

_SERVICES = {
    "seqloom.v1.InferenceService": "infer",
    "seqloom.v1.TrainingService": "train",  # PublishRun, too: a run is there to be published
    "grpc.health.v1.Health": ANY,
    "grpc.reflection.v1alpha.ServerReflection": ANY,
}
_METHODS = {
    "seqloom.v1.ModelService/GetServerInfo": ANY,
    "seqloom.v1.ModelService/ListModels": ANY,
    "seqloom.v1.ModelService/GetModel": ANY,
}


def scope_of(method: str) -> str:
    """Returns the scope that a method needs, ANY if any token will do. method: "package.Service/Method"."""
    scope = _METHODS.get(method)
    return _SERVICES.get(method.partition("/")[0], "admin") if scope is None else scope
