"""`python -m benchmarks`. Nothing is imported here before it is needed: the load's processes import this module too."""

if __name__ == "__main__":
    import sys

    from benchmarks.run import main

    sys.exit(main())
