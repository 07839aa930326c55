"""The library, in a checkout: the same objects as in gateway.inference, which is what an installed package has."""

from gateway.inference import Answer, Asking, Call, EngineSpec, GatewayError, InferenceFactory, ModelSpec

__all__ = ["Answer", "Asking", "Call", "EngineSpec", "GatewayError", "InferenceFactory", "ModelSpec"]
