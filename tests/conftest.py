"""Order of the test files."""

# Files that take minutes, the longest first: were they last, one process would work on them alone at the end.
LONGEST = ("test_end_to_end.py", "test_steps.py", "test_conversion.py", "test_parity.py", "test_pixels.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
