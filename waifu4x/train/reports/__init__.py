"""What a run tells of itself: figures, charts, pictures, a page, a card."""
