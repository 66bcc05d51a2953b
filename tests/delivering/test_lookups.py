"""How look-ups are shared out, whatever the names do."""

import asyncio
from collections import Counter

from chargegate.delivering.lines import Destination
from chargegate.delivering.lookups import LookUps
from chargegate.model import CallbackTarget, parse_callback_url
from scenario import run

LIMIT_S = 20


class Scene:
    """Look-ups that end when the test says."""

    def __init__(self, most: int) -> None:
        self.running: dict[str, asyncio.Future[None]] = {}
        self.ended: list[str] = []
        self.look_ups = LookUps(self._look_up, lambda destination: self.ended.append(destination.key), most)

    async def _look_up(self, target: CallbackTarget) -> None:
        self.running[target.host] = asyncio.get_running_loop().create_future()
        await self.running[target.host]

    async def ask(self, client: str, name: str, *, proven: bool = False) -> Destination:
        target = parse_callback_url(f"http://{name}.example/")
        destination = Destination(name, 20)
        self.look_ups.ask(client, destination, target, proven=proven)
        await asyncio.sleep(0)
        return destination

    async def end(self, name: str) -> None:
        self.running.pop(f"{name}.example").set_result(None)
        for _ in range(4):
            await asyncio.sleep(0)

    def of(self, client: str) -> int:
        return Counter(name[0] for name in self.running)[client[0]]


def test_one_client_never_takes_all_and_the_next_begins_at_once() -> None:
    async def main() -> None:
        scene = Scene(16)
        for n in range(100):
            await scene.ask("flood", f"f{n}")
        assert scene.of("flood") == 8
        for n in range(3):
            await scene.ask("quiet", f"q{n}")
        assert scene.of("quiet") == 3
        await scene.ask("flood", "fp", proven=True)
        assert scene.of("flood") == 9, "a destination that answered lately waits behind those that never did"
        scene.look_ups.close()

    run(main(), LIMIT_S)


def test_every_name_has_its_turn_once() -> None:
    async def main() -> None:
        scene = Scene(6)
        asked = [await scene.ask(client, f"{client[0]}{n}") for client in ("first", "second") for n in range(20)]
        assert all(each.nameless for each in asked)
        while scene.running:
            assert len(scene.running) <= 6
            await scene.end(next(iter(scene.running)).removesuffix(".example"))
        assert sorted(scene.ended) == sorted(each.key for each in asked)
        assert not any(each.nameless for each in asked)
        assert (scene.look_ups._free, scene.look_ups._askers, scene.look_ups._running) == (6, {}, {})

    run(main(), LIMIT_S)


def test_two_clients_that_ask_for_one_destination_ask_once() -> None:
    async def main() -> None:
        scene = Scene(4)
        for n in range(8):
            await scene.ask("flood", f"f{n}")
        shared = await scene.ask("flood", "fs")
        assert "fs.example" not in scene.running
        scene.look_ups.ask("quiet", shared, parse_callback_url("http://fs.example/"), proven=False)
        await asyncio.sleep(0)
        assert "fs.example" in scene.running
        await scene.end("fs")
        for n in range(8):
            if f"f{n}.example" in scene.running:
                await scene.end(f"f{n}")
        assert scene.ended.count("fs") == 1

    run(main(), LIMIT_S)


def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    async def main() -> None:
        scene = Scene(2)
        await scene.ask("flood", "f0")
        gone, kept = await scene.ask("flood", "f1"), await scene.ask("flood", "f2")
        scene.look_ups.forget(gone)
        await scene.end("f0")
        assert list(scene.running) == ["f2.example"]
        scene.look_ups.forget(kept)
        await scene.end("f2")
        assert scene.look_ups._askers == {}

    run(main(), LIMIT_S)
