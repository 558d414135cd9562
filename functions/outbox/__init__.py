"""Messages that SQS did not take get there after all."""
