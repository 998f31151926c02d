"""Order of the test files, and the option that writes what users are told."""

# Files that take minutes, the longest first: were they last, one process would work on them alone at the end.
LONGEST = ("test_end_to_end.py", "test_steps.py", "test_conversion.py", "test_parity.py", "test_pixels.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_addoption(parser):
    parser.addoption("--write-errors", action="store_true", help="write the answers to docs/results/errors.json")
