"""Callers as the gRPC door tells them apart: by address, without the port."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
import pytest

from engines.model import Model
from latentd import AsyncClient, Client, Picture, ServerError
from server.app import Server
from tests.support.held import Held
from tests.support.jobs import alone
from tests.support.serving import address, serving

FLOOD = {"prompt": "a red apple", "steps": 30, "seed": 5, "images": 4, "sampler": "unipc"}
OTHER = {"prompt": "a cat", "steps": 4, "seed": 9, "sampler": "dpmpp_2m_sde"}


def addresses(server: Server) -> tuple[str, str]:
    """Two callers: IPv4 and IPv6; where a machine has no IPv6, two addresses of its loopback cannot be told apart."""
    return f"127.0.0.1:{server.grpc_port}", f"[::1]:{server.grpc_port}"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_flood_and_another_caller_have_the_pixels_of_those_made_alone(wired: Model, held: Held, model: Model) -> None:
    async def both(server: Server) -> tuple[list[Picture], list[Picture]]:
        one, two = addresses(server)
        async with AsyncClient(one) as flood, AsyncClient(two) as other:
            flooding = asyncio.create_task(flood.generate(**FLOOD))
            for _ in range(4):
                await asyncio.to_thread(held.begun)
                held.let()
            await asyncio.to_thread(held.begun)
            asking = asyncio.create_task(other.generate(**OTHER))
            while not server.service.device or len(server.service.device._jobs) < 2:
                await asyncio.sleep(0)
            held.release()
            return await flooding, await asking

    with serving(wired, seats=2, host="::", insecure=True) as server:
        held.hold()
        flooded, asked = asyncio.run(both(server))
        pauses = server.metrics.registry.get_sample_value("latentd_pauses_total", {"model": server.service.model_id})
    assert pauses == 1
    np.testing.assert_array_equal(np.asarray(asked[0].image), alone(model, **OTHER))
    for picture in flooded:
        np.testing.assert_array_equal(np.asarray(picture.image), alone(model, **{**FLOOD, "seed": picture.seed}))


def test_a_priority_above_0_is_for_those_whom_the_configuration_names(model: Model) -> None:
    with serving(model) as server, Client(address(server)) as client:
        with pytest.raises(ServerError, match="priority is 1; .* setting priority_callers does not name 127.0.0.1"):
            client.generate("a cat", steps=1, priority=1)
        assert client.generate("a cat", steps=1, priority=0) and client.generate("a cat", steps=1, priority=-3)
    for names in (("127.0.0.1",), ("10.0.0.0/8", "127.0.0.0/8"), ("::1", "0.0.0.0/0")):
        with serving(model, priority_callers=names) as server, Client(address(server)) as client:
            assert client.generate("a cat", steps=1, priority=7)
