"""What happened in the library."""

from everlog import App, Event, Topic

lending = Topic("library.loans", key="reader")


@lending.event("library.book_lent/1")
class BookLent(Event):
    reader: str
    book: str


loans = App("loans")
