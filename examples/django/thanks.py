"""A service that thanks for each loan, once."""

from everlog import App, Tx
from library.facts import BookLent

thanks = App("thanks")
lent = thanks.state("lent/1", int)  # key: reader


@thanks.on(BookLent)
async def thank(fact: BookLent, tx: Tx) -> None:
    tx.add(lent, fact.reader, 1)
    print(f"{fact.reader} has {fact.book}", flush=True)
