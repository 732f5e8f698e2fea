"""What happened to a room."""

from __future__ import annotations

from datetime import date

from everlog import Event, Topic

bookings = Topic("hotel.bookings", key="room")


@bookings.event("hotel.room_booked/1")
class RoomBooked(Event):
    room: str
    night: date
    guest: str
