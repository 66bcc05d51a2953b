import os
from concurrent.futures import ThreadPoolExecutor

from chargegate.model import RandomPieces

SIZE = 12


def test_pieces_have_their_size_and_none_comes_twice() -> None:
    pieces = RandomPieces(SIZE)

    taken = [pieces.take() for _ in range(10_000)]

    assert {len(piece) for piece in taken} == {SIZE}
    assert len(set(taken)) == len(taken)


def test_threads_do_not_get_the_same_piece() -> None:
    pieces = RandomPieces(SIZE)

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: pieces.take(), range(20_000)))

    assert len(set(taken)) == len(taken)


def test_a_forked_child_gets_none_of_its_parents_pieces() -> None:
    pieces = RandomPieces(SIZE)
    pieces.take()
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.write(writes, b"".join(pieces.take() for _ in range(300)))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        written = pipe.read()

    theirs = {written[start : start + SIZE] for start in range(0, len(written), SIZE)}

    assert len(theirs) == 300
    assert theirs.isdisjoint(pieces.take() for _ in range(300))
