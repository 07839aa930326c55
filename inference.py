"""The library, in a checkout: the same objects as in gateway.inference, which is what an installed package has."""

from gateway.inference import Answer, Call, EngineSpec, GatewayError, InferenceFactory, ModelSpec

__all__ = ["Answer", "Call", "EngineSpec", "GatewayError", "InferenceFactory", "ModelSpec"]
