from sqs_jax import start

if __name__ == "__main__":
    start.run("sqs_jax.analysis.cli")
