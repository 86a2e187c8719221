"""Ports of a stand are its own from the choice on, and programs can be started there again and again."""

from __future__ import annotations

import socket

import pytest

from benchmarks.ports import LOOPBACK, KeptPorts


def test_two_that_choose_at_once_never_get_the_same_port() -> None:
    made = [KeptPorts(40) for _ in range(10)]
    chosen = [number for one in made for number in one.numbers]
    assert len(set(chosen)) == len(chosen) == 400


def test_a_server_listens_where_a_port_is_kept_and_anew_after_it_ended() -> None:
    kept = KeptPorts(1)
    (number,) = kept.numbers
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, number))
        with socket.create_server((LOOPBACK, number)), socket.create_connection((LOOPBACK, number)):
            pass


def test_who_does_not_say_that_it_shares_is_told_that_a_kept_port_is_taken() -> None:
    kept = KeptPorts(1)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((LOOPBACK, kept.numbers[0]))
    (number,) = kept.numbers
    del kept
    with socket.socket() as stranger:
        stranger.bind((LOOPBACK, number))
