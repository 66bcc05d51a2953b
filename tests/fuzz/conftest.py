"""The service of the tests of the contract, for whatever may be sent to it."""

from contract.conftest import shared_service

__all__ = ["shared_service"]
