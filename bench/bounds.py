"""The least time that a card could take. What cards sustain, the command-line tool knows (src/cards.hpp)."""

from tool import ask


def bound_us(gpu, row):
    """The least time of a row of a results file, from its FLOPs and bytes; None where a rate is not known."""
    cards = {card["name"]: card for card in ask("info")["cards"]}
    card = cards.get(gpu, {})
    flops, bytes_ = card.get("sustained_flops_per_second"), card.get("sustained_copy_bytes_per_second")
    if not flops or not bytes_:
        return None
    return 1e6 * max(row["flops"] / flops, row["bytes"] / bytes_)
