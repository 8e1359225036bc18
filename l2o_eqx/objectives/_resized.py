_FACTORS = {"½": 0.5, "2": 2.0, "4": 4.0}


def resized(sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Half, twice and four times as large, by the name of the factor; those that stay as they are left out.

    Rounded up.
    """
    scaled = {name: tuple(-int(-size * factor // 1) for size in sizes) for name, factor in _FACTORS.items()}
    return {name: new for name, new in scaled.items() if new != sizes}
