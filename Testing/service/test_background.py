"""Questions asked from a window's thread, answered in another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from GSMedSegLib.cropped import crop
from GSMedSegLib.prompts import Click, ObjectPrompts
from GSMedSegLib.service import errors
from GSMedSegLib.service.background import Background, Told
from GSMedSegLib.service.engines import ServerEngine
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import Answer, ImageBytes, Question
from Testing.service.conftest import TOKEN, Served, wait_until

MASK = crop(np.ones((2, 2, 2), bool))


def question(k: int) -> Question:
    return Question(ObjectPrompts((Click((k, 0, 0), True),)))


class FakeImage:
    """Answers when it may; fails where the question says so."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()
        self.asked: list[int] = []
        self.cancel_ends = threading.Event()
        self.cancel_ends.set()
        self.cancelled_before: list[int] = []
        """How many questions were asked before each cancel had ended."""
        self.closed = False
        self.sent, self.doing = True, "clicks"

    def segment(self, asked: Question, progress: Callable[[str, int, int], None]) -> Answer:
        number = asked.prompts.clicks[0].kji[0]
        self.asked.append(number)
        self.begun.set()
        progress(self.doing, 0, 1)
        while not self.go.wait(0.01):
            progress(self.doing, 0, 1)
        progress("clicks", 0, 1)
        if number == 99:
            raise errors.EngineLost("it is gone")
        return Answer(MASK)

    def cancel(self) -> None:
        """Its next progress breaks it off."""
        self.cancel_ends.wait(30)
        self.cancelled_before.append(len(self.asked))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake() -> FakeImage:
    return FakeImage()


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background(None)  # type: ignore[arg-type]  # the fake image needs no engine
    yield made
    made.close()


def ends(background: Background) -> list[Told]:
    """All that is told until nothing is being answered, progress aside."""
    told: list[Told] = []

    def done() -> bool:
        idle = not background.busy
        told.extend(background.poll(0.01))
        return idle

    wait_until(done)
    return [one for one in told if one.answer is not None or one.error is not None]


def test_an_answer_arrives_by_polling(background: Background, fake: FakeImage):
    background.ask("a", "image", lambda _: fake, question(1))
    (told,) = ends(background)
    assert told.tag == "a"
    assert told.answer == Answer(MASK)
    assert told.error is None


def test_what_was_answered_is_remembered(background: Background, fake: FakeImage):
    for _ in range(3):
        background.ask("a", "image", lambda _: fake, question(1))
        assert ends(background)[0].answer == Answer(MASK)
    assert fake.asked == [1]
    background.forget("image")
    wait_until(lambda: fake.closed)
    background.ask("a", "image", lambda _: fake, question(1))
    ends(background)
    assert fake.asked == [1, 1]


def test_of_questions_with_one_tag_the_last_is_answered(background: Background, fake: FakeImage):
    fake.go.clear()
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.ask("a", "image", lambda _: fake, question(2))
    background.ask("a", "image", lambda _: fake, question(3))
    background.ask("b", "image", lambda _: fake, question(4))
    fake.go.set()
    told = ends(background)
    assert {(one.tag, one.question) for one in told} == {("a", question(3)), ("b", question(4))}
    assert 2 not in fake.asked


def test_nothing_is_told_of_what_was_cancelled(background: Background, fake: FakeImage):
    fake.go.clear()
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.cancel("a")
    fake.go.set()
    assert ends(background) == []


def test_a_cancel_that_takes_its_time_has_ended_before_the_next_question(
    background: Background, fake: FakeImage
):
    """It would end that one in place of the one it was meant for."""
    fake.go.clear()
    fake.cancel_ends.clear()
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.ask("a", "image", lambda _: fake, question(2))
    fake.go.set()
    wait_until(lambda: background._now is None)
    time.sleep(0.1)
    assert fake.asked == [1]
    fake.cancel_ends.set()
    (told,) = ends(background)
    assert told.question == question(2)
    assert fake.cancelled_before == [1]


def test_a_further_click_does_not_break_off_an_image_on_its_way(background: Background, fake: FakeImage):
    """Else it would be sent from the beginning; leaving the program does break it off."""
    fake.go.clear()
    fake.sent, fake.doing = False, "image"
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.ask("a", "image", lambda _: fake, question(2))
    time.sleep(0.1)
    assert fake.asked == [1]
    assert fake.cancelled_before == []
    fake.go.set()
    (told,) = ends(background)
    assert told.question == question(2)
    fake.go.clear()
    background.ask("a", "image", lambda _: fake, question(3))
    wait_until(lambda: fake.asked[-1] == 3)
    background.close()
    wait_until(lambda: fake.closed)
    fake.go.set()


def test_the_next_question_is_told_how_far_the_image_is(background: Background, fake: FakeImage):
    fake.go.clear()
    fake.sent, fake.doing = False, "image"
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.ask("a", "image", lambda _: fake, question(2))
    told: list[Told] = []
    wait_until(lambda: told.extend(background.poll(0.01)) or told)
    assert {(one.question, one.doing) for one in told} == {(question(2), "image")}
    fake.go.set()
    ends(background)


def test_another_image_does_not_wait_for_one_that_is_sent_for_nobody(background: Background, fake: FakeImage):
    fake.go.clear()
    fake.sent, fake.doing = False, "image"
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.cancel("a")
    assert fake.cancelled_before == []
    background.ask("b", "other", lambda _: fake, question(2))
    wait_until(lambda: fake.cancelled_before == [1])
    fake.go.set()
    (told,) = ends(background)
    assert told.question == question(2)


@pytest.mark.parametrize("end", ["forget", "close"])
def test_an_image_given_up_while_it_is_made_is_not_sent(background: Background, fake: FakeImage, end: str):
    making, go = threading.Event(), threading.Event()

    def make(_: object) -> FakeImage:
        making.set()
        go.wait(30)
        return fake

    background.ask("a", "image", make, question(1))
    assert making.wait(30)
    background.cancel("a")
    background.forget("image") if end == "forget" else background.close()
    go.set()
    assert ends(background) == []
    assert fake.asked == []
    if end == "forget":
        background.ask("a", "image", make, question(2))
        (told,) = ends(background)
        assert told.answer == Answer(MASK)


def test_closing_lets_the_engine_forget_the_image_in_use(background: Background, fake: FakeImage):
    fake.go.clear()
    background.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    background.close()
    wait_until(lambda: fake.closed)
    fake.go.set()


def test_forgetting_an_image_on_its_way_stops_it(
    serve: Callable[..., AbstractContextManager[Served]],
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
):
    """The rest is not sent, and the service keeps no session."""
    monkeypatch.setattr("GSMedSegLib.service.wire.CHUNK_BYTES", 1024)
    sent: list[int] = []
    go = threading.Event()
    chunk = ImageBytes.chunk

    def slow(self: ImageBytes, number: int, compress: bool) -> bytes:
        sent.append(number)
        if number == 2:
            go.wait(30)
        return chunk(self, number, compress)

    monkeypatch.setattr(ImageBytes, "chunk", slow)
    with serve() as served:
        background = Background(ServerEngine(served.url, TOKEN))
        background.ask("a", "image", lambda source: RemoteImage(source, image, np.eye(4)), question(8))
        wait_until(lambda: 2 in sent)
        background.cancel("a")
        remote = background._images["image"]
        background.forget("image")
        wait_until(remote._closed.is_set)
        go.set()
        assert ends(background) == []
        assert sent == [0, 1, 2]
        assert served.client().about()["sessions"] == 0
        background.close()


def test_closing_leaves_nothing_on_a_server(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """Whatever images were worked on: Slicer ends right after, and gives threads no time to say so."""
    monkeypatch.setattr("GSMedSegLib.service.background.CLOSE_S", 60.0)  # the machine may be busy
    with serve() as served:
        background = Background(ServerEngine(served.url, TOKEN))
        for number in (1, 2):
            background.ask(
                "a", number, lambda source, n=number: RemoteImage(source, image + n, np.eye(4)), question(8)
            )
            assert ends(background)[0].answer is not None
        assert served.client().about()["sessions"] == 2
        background.close()
        assert served.client().about()["sessions"] == 0


def test_closing_does_not_wait_long_for_a_silent_server(fake: FakeImage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("GSMedSegLib.service.background.CLOSE_S", 0.05)
    made, heard = Background(None), threading.Event()  # type: ignore[arg-type]
    made.ask("a", "image", lambda _: fake, question(1))
    ends(made)
    monkeypatch.setattr(fake, "close", heard.wait)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 5
    heard.set()


def test_an_error_is_told_and_the_next_question_answered(background: Background, fake: FakeImage):
    background.ask("a", "image", lambda _: fake, question(99))
    (told,) = ends(background)
    assert isinstance(told.error, errors.EngineLost)
    background.ask("a", "image", lambda _: fake, question(1))
    assert ends(background)[0].answer == Answer(MASK)


class Full(FakeImage):
    """An image that an engine has no room for beside so many others."""

    def __init__(self, images: list[Full], most: int) -> None:
        super().__init__()
        self.images, self.most, self.sent = images, most, False
        images.append(self)

    def segment(self, asked: Question, progress: Callable[[str, int, int], None]) -> Answer:
        if sum(image.sent for image in self.images if image is not self) >= self.most:
            raise errors.EngineBusy("images take all the memory")
        self.sent = True
        return super().segment(asked, progress)

    def close(self) -> None:
        super().close()
        self.sent = False


def test_an_engine_without_room_forgets_the_oldest_images(background: Background):
    """As many as it takes, and no more; they are sent again when they are clicked on."""
    images: list[Full] = []
    for number, most in (("first", 3), ("second", 3), ("third", 3), ("large", 2), ("first", 3)):
        background.ask("a", number, lambda _, most=most: Full(images, most), question(len(images)))
        assert ends(background)[0].answer == Answer(MASK)
    assert [image.closed for image in images] == [True, True, False, False, False]


def test_an_engine_that_others_fill_is_busy(background: Background):
    images: list[Full] = []
    for most in (1, 0):
        background.ask("a", most, lambda _, most=most: Full(images, most), question(most))
        (told,) = ends(background)
    assert isinstance(told.error, errors.EngineBusy)
    assert [image.closed for image in images] == [True, False]


def test_an_engine_with_much_to_do_forgets_no_image(background: Background, fake: FakeImage):
    background.ask("a", "image", lambda _: fake, question(1))
    ends(background)
    other = Full([], 0)
    other.sent = True
    background.ask("a", "other", lambda _: other, question(2))
    (told,) = ends(background)
    assert isinstance(told.error, errors.EngineBusy)
    assert not fake.closed


def test_one_large_image_after_another(
    serve: Callable[..., AbstractContextManager[Served]], image: np.ndarray
):
    """With memory for one, by the engine's own account, back and forth."""
    with serve(memory_gb=1.5 * 2**25 / 2**30) as served:
        background = Background(ServerEngine(served.url, TOKEN))
        for number in (1, 2, 1):
            background.ask(
                "a",
                number,
                lambda source, n=number: RemoteImage(source, image + n, np.eye(4)),
                question(number),
            )
            (told,) = ends(background)
            assert told.answer is not None, told.error
        assert served.client().about()["sessions"] == 1
        background.close()


def test_closing_ends_the_thread(fake: FakeImage):
    made = Background(None)  # type: ignore[arg-type]
    fake.go.clear()
    made.ask("a", "image", lambda _: fake, question(1))
    assert fake.begun.wait(30)
    made.close()
    fake.go.set()
    wait_until(lambda: not made._thread.is_alive())
