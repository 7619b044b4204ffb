"""Names and sentences are compared by their words."""

import pytest

from mcr_jax.judges import _words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Harrowmere fevers", "harrowmere  FEVER."),
        ("Lorn's gulletry", "Lorn’s gulletry"),
        ("Marlo's hush", "Marlo hush"),
        ("Hobble-gut", "Hobble gut"),
        ("Merrin‑coil", "a merrin coil"),
    ],
)
def test_two_writings_of_one_name_are_equal(one, other):
    assert _words.name(one) == _words.name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Brindle rime", "Brindle"),
        ("Brindle rime", "rime Brindle"),
        ("Brindle rime", "not Brindle rime"),
        ("Brindle rime", "Brindle rime or Saltmarsh pallor"),
        ("rime type 1", "rime type 2"),
        ("plexus", "plexu"),
    ],
)
def test_names_of_other_words_differ(one, other):
    assert _words.name(one) != _words.name(other)


def test_sentences_cover_the_text_and_leave_decimals_whole():
    text = " Vellin was 3.2 ku/L. “It hums!” she said.\n2. No frost\nat dusk… ok "
    assert [text[a:b] for a, b in _words.sentences(text)] == [
        *("Vellin was 3.2 ku/L.", "“It hums!”", "she said.", "2.", "No frost", "at dusk…", "ok"),
    ]
    assert list(_words.sentences(" \n ")) == []
