"""What a subscription does when retention has deleted events before it handled them."""

from __future__ import annotations

import logging
from typing import Final

from everlog.errors import HistoryGone
from everlog.position import Offset, TopicPartition
from everlog.subscriptions.declaration import SubscriptionDeclaration

_logger: Final = logging.getLogger("everlog")


def pass_or_stop(declaration: SubscriptionDeclaration, where: TopicPartition, after: Offset, first: Offset) -> None:
    """Say that events are gone, where the delivery goes on with the oldest one that is kept.

    Args:
        declaration: Whose events they were.
        where: Their partition.
        after: The offset behind which the subscription stands.
        first: The offset before the oldest record that is kept.

    Raises:
        HistoryGone: The delivery says to stop.
    """
    if declaration.delivery.on_gap == "stop":
        raise HistoryGone(
            f"subscription {declaration.name!r} stands at offset {after} of {where.topic}/{where.partition}, and retention has deleted up to "
            f'{first}: write Delivery(on_gap="oldest") to go on with the oldest event that is kept, or keep more (everlog topics set)'
        )
    _logger.error(
        "%s/%s: events of %s/%d behind offset %d and up to %d were deleted before they were handled",
        declaration.app, declaration.name, *where, after, first,
    )  # fmt: skip
