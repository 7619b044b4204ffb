"""Shared by the tests of training."""

import dataclasses

import pytest


@pytest.fixture(scope="session")
def shape(tiny_shape, clinic_tokenizer):
    return dataclasses.replace(tiny_shape, vocab_size=clinic_tokenizer.vocab_size)
