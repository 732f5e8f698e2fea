"""A service that knows of bookings only what the event says."""

from bookings import RoomBooked
from everlog import App, Tx

cleaning = App("cleaning")
nights = cleaning.state("nights/1", int)  # key: room


@cleaning.on(RoomBooked)
async def plan(booked: RoomBooked, tx: Tx) -> None:
    tx.add(nights, booked.room, 1)
    print(f"clean room {booked.room} before {booked.night}", flush=True)
