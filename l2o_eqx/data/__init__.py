"""The data sets: MNIST's handwritten digits, embedded or in full, and Omniglot's characters."""

from ._mnist import Digits as Digits
from ._mnist import load_mnist as load_mnist
from ._omniglot import Characters as Characters
from ._omniglot import load_omniglot as load_omniglot
from ._tfds import DataError as DataError
