"""What is voted, and the service that counts. It knows nothing of Flask."""

from everlog import App, Event, Topic, Tx

votes = Topic("polls.votes", key="poll")


@votes.event("polls.vote_cast/1")
class VoteCast(Event):
    poll: str
    vote: str
    """Its id, chosen by who votes, so that a request that is sent again counts once."""
    choice: str


tally = App("tally")
counts = tally.state("counts/1", int)


@tally.on(VoteCast)
async def count(cast: VoteCast, tx: Tx) -> None:
    total = await tx.get(counts, (cast.poll, cast.choice), 0) + 1
    tx.put(counts, (cast.poll, cast.choice), total)
    print(f"{cast.poll}: {cast.choice} has {total}", flush=True)
