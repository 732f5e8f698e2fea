"""A web application with rows of its own: each booking is committed together with the event that tells of it."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import date

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bookings import RoomBooked
from everlog import App

rooms = App("rooms")
engine = create_async_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    pass


class Booking(Base):
    __tablename__ = "booking"
    room: Mapped[str] = mapped_column(primary_key=True)
    night: Mapped[date] = mapped_column(primary_key=True)
    guest: Mapped[str]


class Wish(BaseModel):
    room: str
    night: date
    guest: str


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncGenerator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with rooms.connect() as client:
        web.state.client = client
        yield
    await engine.dispose()


web = FastAPI(lifespan=lifespan)


@web.post("/bookings", status_code=201)
async def book(wish: Wish, request: Request) -> None:
    booking = Booking(room=wish.room, night=wish.night, guest=wish.guest)
    try:
        async with AsyncSession(engine) as session, session.begin():
            session.add(booking)
            await session.flush()  # before the event: who comes second is told at once
            await request.app.state.client.publish(RoomBooked(wish.room, wish.night, wish.guest), within=session)
    except IntegrityError as error:
        raise HTTPException(409, f"room {wish.room} is taken on {wish.night}") from error
