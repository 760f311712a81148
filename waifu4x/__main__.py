"""`python -m waifu4x` is the command `waifu4x`."""

from waifu4x.cli.app import main

if __name__ == "__main__":
    main()
