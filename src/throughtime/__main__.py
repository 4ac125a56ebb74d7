"""``python -m throughtime``, and ``torchrun -m throughtime`` for several processes."""

from throughtime.cli.main import main

if __name__ == "__main__":
    main()
