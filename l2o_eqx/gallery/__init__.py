"""Trained optimizers that travel with the package, each with the recipe it was made by and a card."""

from ._gallery import card as card
from ._gallery import file_of as file_of
from ._gallery import names as names
from ._gallery import notes_on as notes_on
from ._gallery import pretrained as pretrained
from ._gallery import recipe_of as recipe_of
