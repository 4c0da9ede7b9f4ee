"""Chats: a list of messages, as the tokenizer's chat template has it.

{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
"""

from collections.abc import Sequence
from typing import Any

from .misuse import Misuse, one_line

IGNORED = -100  # a label that no loss counts
ASSISTANT = "assistant"
Message = dict[str, Any]


def checked_chat(value: Any, key: str, at: str) -> list[Message]:
    """`value` where it is a chat that has something to learn.

    key: of the config; at: which row, for messages. Raises Misuse for what is none.
    """
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise Misuse(
            f"{key}: {_short(value)} in {at} is no chat; a list such as"
            ' [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}] is expected'
            " (in a .jsonl file)"
        )
    if not any(message["role"] == ASSISTANT for message in value):
        raise Misuse(
            f"{key}: nothing is said by the role {ASSISTANT!r} in {at}, so there is nothing to"
            " learn; leave the row out"
        )
    return value


def _is_message(value: Any) -> bool:
    is_mapping = isinstance(value, dict) and isinstance(value.get("role"), str)
    return is_mapping and value.get("content") is not None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], key: str
) -> tuple[list[int], list[int]]:
    """(the tokens of a chat, the same where the assistant speaks and IGNORED elsewhere).

    A turn of the assistant begins where the template would have it generated. Raises Misuse where
    there is no template, or where it writes the turns before otherwise than within the whole chat,
    so that nobody can tell what is whose.
    """
    if tokenizer.chat_template is None:
        raise Misuse(
            "data.messages: the tokenizer has no chat template, so nobody knows how to write a"
            " chat; take a model that was made for chats, or give rows with `prompt:` and `text:`"
        )
    chat = list(messages)
    tokens = _tokens(tokenizer, chat, key)
    labels = [IGNORED] * len(tokens)
    for number, message in enumerate(chat):
        if message["role"] != ASSISTANT:
            continue
        begin = _common(tokenizer, chat[:number], tokens, key, starts_turn=True)
        end = _common(tokenizer, chat[: number + 1], tokens, key)
        if number == len(chat) - 1:
            end = len(tokens)
        labels[begin:end] = tokens[begin:end]
    return tokens, labels


def _common(
    tokenizer: Any, part: list[Message], tokens: list[int], key: str, starts_turn: bool = False
) -> int:
    """How many tokens the first messages of a chat are."""
    if not part:
        return 0
    found = _tokens(tokenizer, part, key, starts_turn)
    if tokens[: len(found)] != found:
        raise Misuse(
            f"{key}: the tokenizer's chat template writes the first {len(part)} messages of"
            f" {_short(part)} otherwise than within the whole chat, so nobody can tell what the"
            " assistant said; give chats that end with its first answer, or rows with `prompt:` and"
            " `text:`"
        )
    return len(found)


def _tokens(
    tokenizer: Any, messages: list[Message], key: str, starts_turn: bool = False
) -> list[int]:
    try:
        made = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=starts_turn
        )
    except Exception as error:  # whatever a template says
        raise Misuse(
            f"{key}: the tokenizer's chat template takes no {_short(messages)}: {one_line(error)}"
        ) from error
    return list(made["input_ids"])
