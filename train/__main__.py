from sqs_jax import start


def main() -> None:
    start.run("sqs_jax.train.cli.train", "interrupted; a run that has begun goes on with --resume")


if __name__ == "__main__":
    main()
