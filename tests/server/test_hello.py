"""What a site may say about itself, and what a run loses by no site's greeting."""

import re
import threading
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedgraft.flower.messages import CLASS_COUNTS, HELLO, IMAGES, SITES
from fedgraft.server.hello import Hello, read_hello
from fedgraft.server.router import Router
from fedgraft.server.sender import Sender
from fedgraft.testing.grids import FakeGrid, Said

CLASSES = ("cat", "dog")


def _greeting(counts: dict[str, Any] | None = None, **changed: Any) -> RecordDict:
    own = {"name": "north", "version": "0.2.0", "fingerprint": "abc", IMAGES: 12, **changed}
    content = RecordDict({HELLO: ConfigRecord({key: value for key, value in own.items() if value is not None})})
    if counts is not None:
        content[CLASS_COUNTS] = MetricRecord(counts)
    return content


def test_a_site_is_known_by_its_name_and_bounded_by_the_images_that_it_says_it_has() -> None:
    assert read_hello(_greeting({"cat": 5, "dog": 7}), CLASSES, 100) == Hello(
        "north", "0.2.0", "abc", 12, {"cat": 5, "dog": 7}
    )
    assert read_hello(_greeting(images=None), CLASSES, 100).images is None
    assert read_hello(_greeting({"cat": 5}), CLASSES, 100).images == 12, "a small class need not be told"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RecordDict({SITES: MetricRecord({SITES: [0]})}), "was not started with"),
        (RecordDict({HELLO: MetricRecord({"name": 3})}), "was not started with"),
        (_greeting(name=None), "the name of a site is text"),
        (_greeting(name=3), "the name of a site is text"),
        (_greeting(name="x" * 10**6), "has 1 to 64 characters"),
        (_greeting(name="../north"), "unlike '../north'"),
        (_greeting(name="\x1b[2J"), "unlike '(2J'"),
        (_greeting(version=7), "'version' is 7, not a text"),
        (_greeting(images="many"), "'images' is of the type str"),
        (_greeting(images=-1), "'images' is -1"),
        (_greeting(images=True), "'images' is of the type bool"),
        (_greeting(images=10**18), "'images' is 1e+18, not from 0 to 100"),
        (_greeting({"cat": -1}), "'cat' is -1"),
        (_greeting({"cat": [1, 2]}), "'cat' is a list of 2"),
        (_greeting({"cat": 13}), "more than it may have"),
        (_greeting({"<script>": 1}), "images of '(script)', a class that the federation does not have"),
        (_greeting({"x" * 10**6: 1}), "a class that the federation does not have"),
    ],
)
def test_a_greeting_that_cannot_be_used_is_one_short_plain_line(content: RecordDict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        read_hello(content, CLASSES, 100)
    line = str(refused.value)
    assert line.isprintable()
    assert len(line) < 500


def test_a_site_that_says_it_has_an_impossible_number_of_images_is_not_part_of_the_run() -> None:
    says = {7: _greeting(name="south"), 8: _greeting(images=10**18), 9: Error(100, "\x1b[31m" + "x" * 10**6)}

    class Nodes(FakeGrid):
        def said(self, message: Message) -> Said:
            return says[message.metadata.dst_node_id]

    router = Router(Sender(Nodes(list(says)), threading.Event(), answer_seconds=1))
    greeting = router.greet(RecordDict(), 3, {}, lambda content: read_hello(content, CLASSES, 100))
    assert greeting.numbers == {"south": 0}
    assert ["1e+18" in reason for reason in greeting.refused] == [True, False]
    assert all(reason.isprintable() and len(reason) <= 300 for reason in greeting.refused)
