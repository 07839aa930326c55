"""Tests of gateways, engines and clients in this process, on real sockets."""
