"""What representations hold: linear probes and the information that tokens carry of labels.

Scikit-learn does the statistics; features and labels are numpy arrays.
"""

import warnings

import numpy as np


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Accuracy of multinomial logistic regression on standardised features (Alain and Bengio 2016).

    Args:
      train_features, test_features: [N, D]; the mean and deviation are those of training.
      train_labels, test_labels: int [N]; negative ones are left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked = train_labels >= 0, test_labels >= 0
    # C is below scikit-learn's default: frames of one clip are far from independent. What is left
    # to gain after so many iterations is below the differences that matter.
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=100))
    with warnings.catch_warnings(action="ignore"):
        probe.fit(train_features[known], train_labels[known])
    return float(probe.score(test_features[asked], test_labels[asked]))


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of always saying the commonest label of training; negative labels are left out."""
    commonest = np.bincount(train_labels[train_labels >= 0]).argmax()
    return float((test_labels[test_labels >= 0] == commonest).mean())


def mutual_information(tokens: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information of tokens and labels, adjusted for chance: 0 for independent ones, 1 for a
    renaming (Vinh et al. 2010). Frames with a negative label are left out."""
    from sklearn.metrics import adjusted_mutual_info_score

    known = labels >= 0
    return float(adjusted_mutual_info_score(labels[known], tokens[known]))


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over the classes that occur in `labels` of the share that is recognised."""
    classes = np.unique(labels)
    return float(np.mean([(predictions[labels == c] == c).mean() for c in classes]))
