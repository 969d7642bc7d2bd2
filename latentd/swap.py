"""`latentd swap [NAME]`: have a running server serve another model; without a name, say which there are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import grpc

from latentd.access import Access, shown
from latentd.channel import channel_options, server_address
from latentd.errors import server_error
from latentd.v1 import admin_pb2 as pb
from latentd.v1.admin_pb2_grpc import AdminStub

_STAGES = {
    pb.STAGE_CHECKING: "checking",
    pb.STAGE_LOADING: "loading",
    pb.STAGE_MAKING: "making its engines",
    pb.STAGE_MEASURING: "measuring its pace",
    pb.STAGE_DRAINING: "serving; requests of the model before that are left:",
    pb.STAGE_DONE: "done: the model before is gone from memory",
}


def run(argv: Sequence[str], prog: str) -> int:
    """Run the command once; returns the exit code. Raises SystemExit(2) for bad usage, KeyboardInterrupt for Ctrl-C."""
    options = _parser(prog).parse_args(argv)
    access = Access(key=options.key, tls_ca=options.tls_ca)
    access.update(tls=True if options.tls else None)
    access.update(tls_client_cert=options.tls_client_cert, tls_client_key=options.tls_client_key)
    try:
        address, show = server_address(options.server), shown(access)
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    choices = channel_options(address)
    with (
        grpc.insecure_channel(address, choices)
        if show.channel is None
        else grpc.secure_channel(address, show.channel, choices)
    ) as channel:
        stub: Any = AdminStub(channel)
        try:
            if options.name is None:
                _print_state(stub.State(pb.StateRequest(), metadata=show.metadata, timeout=10))
            else:
                request = pb.SwapRequest(model=options.name, prediction=options.prediction)
                for stage in stub.Swap(request, metadata=show.metadata):
                    print(f"{stage.seconds:.1f} s: {_words(stage)}", flush=True)
        except grpc.RpcError as error:
            print(f"{prog}: {_refusal(error, address)}", file=sys.stderr)
            return 1
    return 0


def _refusal(error: Any, address: str) -> str:
    """Say what a grpc.RpcError means; a server without Admin knows its methods as little as a stranger does."""
    unknown = (error.details() or "").lower().startswith(("method not found", "unknown service"))
    if error.code() is grpc.StatusCode.UNIMPLEMENTED and unknown:
        return f"the server at {address} swaps no models: it was started without --admin on, or is not latentd"
    return str(server_error(error, address))


def _print_state(state: pb.StateResponse) -> None:
    print(f"{state.model} is served, digest {state.weights_digest[:12]}")
    if state.swapping_to:
        print(f"a swap to {state.swapping_to} is under way: {_words(state.stage)}")
    for name in state.models:
        print(f"  {name}")


def _words(stage: pb.SwapStage) -> str:
    """Say what a stage is; a newer server may have one more."""
    left = f" {stage.left}" if stage.stage == pb.STAGE_DRAINING else ""
    return f"{_STAGES.get(stage.stage, f'stage {stage.stage}')}{left}"


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Have a running server serve another model of its folder (--admin-models); no request fails. "
        "Without NAME: which is served, and which there are. Ctrl-C before it serves cancels the swap.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="as the list without NAME has it")
    add("--prediction", default="", metavar="P", help="of a .safetensors file: epsilon or v_prediction")
    add("--server", metavar="HOST[:PORT]", default=os.environ.get("LATENTD_SERVER"), help="where it listens")
    add("--key", metavar="KEY|@FILE", help="an admin's: @ and a file that has it; LATENTD_KEY may have it too")
    add("--tls", action="store_true", help="encrypt; the server's certificate is a public authority's")
    add("--tls-ca", metavar="PATH", help="the same, with the authorities of this file, in PEM")
    add("--tls-client-cert", metavar="PATH", help="this client's certificate, in PEM, where the server wants one")
    add("--tls-client-key", metavar="PATH", help="and its key")
    return parser


__all__ = ["run"]
