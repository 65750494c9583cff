"""skorch's training loop, in a module of its own because only the fine-tuned anchor imports skorch."""

from skorch import NeuralNetClassifier


class Tuner(NeuralNetClassifier):
    """skorch's classifier with a weight for each row, and interruptions told apart."""

    stopped_by_callback = False

    def notify(self, method_name, **kwargs):
        """Note where a callback ends training: skorch's way is to raise KeyboardInterrupt."""
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt:
            self.stopped_by_callback = True
            raise

    def get_loss(self, y_pred, y_true, X, training=False):
        """Return the weighted mean of the rows' losses."""
        weight = X["weight"].to(y_pred)
        losses = self.criterion_(y_pred, y_true.to(y_pred.device))
        return (losses * weight).sum() / weight.sum()
