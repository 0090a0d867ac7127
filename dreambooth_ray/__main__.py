"""`python -m dreambooth_ray`: the command line."""

from dreambooth_ray.cli.main import main

if __name__ == "__main__":
    main()
